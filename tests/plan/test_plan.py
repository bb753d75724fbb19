import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import PlanError, UsageError
from regraft.plan.read import check, key_lines, parse_setting, read_plan
from regraft.plan.write import write_plan

BASE = {"source": {"ref": "timm:resnet18"}, "data": {"path": "flowers"}}


def problems(**sections):
    with pytest.raises(PlanError) as error:
        check({**BASE, **sections})
    return error.value.problems


def test_all_problems_come_at_once_with_line_and_nearest_key(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        '[source]\nref = "timm:resnet18"\n[data]\npath = "x"\n\n[fit]\nepocs = 3\nlr = "fast"\n'
        '[freezing]\nname = "last_blocks"\nblock = 2\n[regularizers.l2]\nstrenght = 1.0\n'
    )
    with pytest.raises(PlanError) as error:
        read_plan(path, {})
    text = str(error.value)
    assert f"{path} has 4 problems" in text
    assert 'line 7    fit.epocs: unknown key; did you mean "epochs"?' in text
    assert "line 8    fit.lr:" in text
    assert 'line 11   freezing.block: unknown key; did you mean "blocks"?' in text
    assert 'line 13   regularizers.l2.strenght: unknown key; did you mean "strength"?' in text


@pytest.mark.parametrize(
    ("section", "values", "word"),
    [
        ("fit", {"epochs": 0}, "fit.epochs"),
        ("fit", {"lr": -1.0}, "fit.lr"),
        ("fit", {"lr": float("nan")}, "fit.lr"),
        ("fit", {"lr": float("inf")}, "fit.lr"),
        ("fit", {"epochs": "3"}, "fit.epochs"),
        ("fit", {"schedule": "cos"}, "fit.schedule"),
        ("data", {"path": "x", "on_bad": "ignore"}, "data.on_bad"),
        ("run", {"seeds": 0}, "run.seeds"),
        ("augment", {"scale": [0.9, 0.1]}, "augment"),
        ("augment", {"flipp": True}, "augment.flipp"),
        ("freezing", {"name": "most"}, "freezing"),
        ("task", {"name": "classification", "label_smoothing": 2.0}, "task"),
        ("nonsense", {"x": 1}, "nonsense"),
    ],
)
def test_a_bad_value_is_named(section, values, word):
    assert any(p.startswith(word) for p in problems(**{section: values}))


def test_a_missing_source_is_named():
    with pytest.raises(PlanError, match=r"source"):
        check({"data": {"path": "x"}})


def test_weights_are_not_pulled_two_ways():
    both = problems(regularizers={"l2_sp": {}, "l2": {}})
    assert "l2_sp pulls weights to the source and l2 pulls the same weights to zero" in both[0]
    assert "remove one" in both[0]
    decay = problems(regularizers={"l2_sp": {}}, fit={"weight_decay": 0.1})
    assert "fit.weight_decay" in decay[0]
    check({**BASE, "regularizers": {"l2_sp": {}}, "fit": {"weight_decay": 0.0}})
    check({**BASE, "regularizers": {"l1": {}, "l2": {}}})  # the elastic net


def test_code_runs_only_with_leave(tmp_path, monkeypatch):
    (tmp_path / "my_lab.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nPath('ran').touch()\n"
        "from regraft.regularizers import Regularizer\n"
        "@dataclass(frozen=True)\nclass Mine(Regularizer):\n"
        "    __pydantic_config__ = {'extra': 'forbid', 'strict': True}\n"
        "    strength: float = 1.0\n"
        "@dataclass(frozen=True)\nclass Other:\n"
        "    __pydantic_config__ = {'extra': 'forbid', 'strict': True}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = {**BASE, "regularizers": {"my_lab:Mine": {"strength": 2.0}}}
    with pytest.raises(PlanError, match="--allow-code"):
        check(tree)
    assert not Path("ran").exists()
    plan = check(tree, allow_code=True)
    (made,) = plan.plugins.regularizers.values()
    assert made.strength == 2.0 and Path("ran").exists()
    with pytest.raises(PlanError, match="Other is no penalty: inherit"):
        check({**BASE, "regularizers": {"my_lab:Other": {}}}, allow_code=True)


def test_settings_of_the_command_line_are_toml_or_words():
    assert parse_setting("fit.lr=1e-5") == ("fit.lr", 1e-5)
    assert parse_setting("fit.epochs=3") == ("fit.epochs", 3)
    assert parse_setting("data.path=no") == ("data.path", "no")
    assert parse_setting("run.out=a=b") == ("run.out", "a=b")
    assert parse_setting("data.text=['a', 'b']") == ("data.text", ["a", "b"])
    with pytest.raises(UsageError, match=r"section\.key=value"):
        parse_setting("epochs")


def test_a_setting_beats_the_file(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[source]\nref = "timm:a"\n[data]\npath = "x"\n[fit]\nepochs = 3\n')
    assert read_plan(path, {"fit.epochs": 5}).fit.epochs == 5
    assert read_plan(path, {}).fit.epochs == 3


def test_a_file_that_is_no_toml_or_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_plan(tmp_path / "none.toml", {})
    bad = tmp_path / "bad.toml"
    bad.write_text("[fit\n")
    with pytest.raises(PlanError, match=r"bad\.toml"):
        read_plan(bad, {})
    bad.write_bytes(b"x = '\xff'\n")
    with pytest.raises(PlanError, match="UTF-8"):
        read_plan(bad, {})


@given(
    st.text(),
    st.floats(1e-9, 1e3, allow_nan=False),
    st.lists(st.text()),
    st.booleans(),
    st.dictionaries(st.text(min_size=1), st.floats(1e-9, 1.0)),
)
def test_a_written_plan_reads_back_as_it_was(text, lr, words, flag, rates):
    plan = check(
        {
            "source": {"ref": text, "allow_fresh": words, "offline": flag},
            "data": {"path": text, "text": words},
            "fit": {"lr": lr, "block_lr": rates, "optimizer_options": {"momentum": 0.9}},
            "regularizers": {"l2_sp": {"alpha": 0.5}},
            "freezing": {"name": "gradual", "epochs_per_stage": 2},
            "evaluate": {"controls": ["scratch"]},
        }
    )
    assert check(tomllib.loads(write_plan(plan))) == plan


def test_reasons_stand_in_the_written_plan():
    text = write_plan(check(BASE), {"fit.lr": "auto: because"})
    line = next(x for x in text.splitlines() if x.startswith("lr ="))
    assert line.endswith("# auto: because")
    assert "passes over train" in text  # elsewhere the meaning of the key


def test_lines_are_those_of_the_keys():
    assert key_lines('a = 1\n[b]\n# c = 2\nd = 3\n[e."f g"]\nh.i = 4\n') == {
        "a": 1,
        "b": 2,
        "b.d": 4,
        "e.f g": 5,
        "e.f g.h.i": 6,
    }


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("examples/*.toml")))
def test_examples_are_plans(path):
    plan = read_plan(path, {})
    assert plan.plugins.freezing(["head"], 1)
    assert plan.run.out


HEAVY = ("torch", "timm", "transformers", "sklearn", "scipy", "matplotlib", "torchvision", "pandas")


@pytest.mark.parametrize(
    "code",
    [
        "from regraft.plan.read import check; check({'source': {'ref': 'x'}, 'data': {'path': 'y'},"
        "'regularizers': {'l2_sp': {}}, 'freezing': {'name': 'gradual'}})",
        "import sys; sys.argv = ['regraft', '--help']\nfrom regraft.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass",
        "import regraft",
    ],
)
def test_reading_a_plan_and_asking_for_help_load_nothing_heavy(code):
    probe = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:]
