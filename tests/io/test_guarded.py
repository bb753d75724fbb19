"""The one reader of run folders: what it opens, what it refuses, and that nothing reads beside it."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

import regraft
from regraft.errors import UsageError
from regraft.io import guarded
from regraft.io.guarded import NotReadError
from regraft.runs import records
from regraft.runs.result import Unfinished
from regraft.runs.side_files import Environment, ManifestRow

ROOT = Path(regraft.__file__).parent

# ---------------------------------------------------------------- what is opened


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text('{"a": [1, 2.5, "x"]}')
    (tmp_path / "secret").write_text("{}")
    return tmp_path / "run"


NAME = "model/config.json"


def test_a_regular_file_is_read_and_a_missing_one_is_none(run):
    assert guarded.read_json(run, NAME) == {"a": [1, 2.5, "x"]}
    assert guarded.read(run, NAME, last=5) == b'"x"]}'
    for name in ("result.json", "no/result.json", "model/config.json/result.json"):
        assert guarded.read(run, name) is None and not guarded.is_file(run, name)
    (run.parent / "other").symlink_to(run)  # what the caller names may be a link
    assert guarded.read_json(run.parent / "other", NAME)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".", "model/../../secret", "a\0b"])
def test_a_name_leads_out_of_no_run(run, name):
    with pytest.raises(NotReadError, match="is no name of a file"):
        guarded.read(run, name)
    assert not guarded.is_file(run, name)


def test_a_name_that_no_file_system_takes_is_said(run):
    with pytest.raises(NotReadError, match="cannot be read"):
        guarded.read(run, "x" * 300)


@pytest.mark.parametrize("where", ["file", "folder", "dangling"])
def test_a_link_is_not_followed(run, where):
    if where == "folder":
        (run / "model").rename(run.parent / "elsewhere")
        (run / "model").symlink_to(run.parent / "elsewhere")
    else:
        (run / NAME).unlink()
        (run / NAME).symlink_to(run.parent / ("secret" if where == "file" else "nothing"))
    for read in (guarded.read_json, guarded.text, lambda *of: list(guarded.lines(*of))):
        with pytest.raises(NotReadError, match="is a link"):
            read(run, NAME)
    with pytest.raises(NotReadError, match="is a link"):
        guarded.copy(run, NAME, run.parent / "copy")
    with pytest.raises(NotReadError, match="link"):
        guarded.check_folder(run, "model")


def test_a_link_that_is_put_there_between_looking_and_opening(run, monkeypatch):
    """The descriptor is opened without following, whatever was seen before."""
    looked = (run / NAME).stat()
    (run / NAME).unlink()
    (run / NAME).symlink_to(run.parent / "secret")
    monkeypatch.setattr(guarded, "_check_path", lambda *args, **how: looked)
    with pytest.raises(NotReadError, match="cannot be read"):
        guarded.read(run, NAME)
    (run / NAME).unlink()
    os.mkfifo(run / NAME)
    with pytest.raises(NotReadError, match="no plain file"):
        guarded.read(run, NAME)


def test_devices_pipes_and_folders_are_not_opened(run):
    os.mkfifo(run / "log.txt")
    for name in ("log.txt", "model"):
        for last in (None, 9):
            with pytest.raises(NotReadError, match="no plain file"):
                guarded.read(run, name, last=last)
    with pytest.raises(NotReadError, match=r"not followed or opened: log\.txt;"):
        guarded.check_folder(run)
    guarded.check_folder(run, "model")
    guarded.check_folder(run, "gallery")  # which is not there


def test_a_file_above_its_limit_is_refused_with_both_numbers(run):
    for name in ("plan.toml", "result.json", "manifest.jsonl", "gallery/0.jpg", NAME):
        (run / name).parent.mkdir(exist_ok=True)
        with (run / name).open("wb") as file:
            file.truncate(guarded.limit_of(name) + 1)
        words = f"has {guarded.limit_of(name) + 1:,} bytes, and at most {guarded.limit_of(name):,}"
        with pytest.raises(NotReadError, match=words):
            guarded.read(run, name)
    with pytest.raises(NotReadError, match="at most 256,000,000 are read"):
        guarded.check_folder(run, "model")


def test_a_long_file_of_a_user_does_not_refuse_the_run(run):
    for name in ("slurm-1.out", "model.tar", "mine.csv"):
        with (run / name).open("wb") as file:
            file.truncate(guarded.limit_of(name) + 1)
    guarded.check_folder(run)
    with (run / "result.json").open("wb") as file:
        file.truncate(guarded.limit_of("result.json") + 1)
    with pytest.raises(NotReadError, match=r"result\.json has"):
        guarded.check_folder(run)


def test_a_folder_with_more_than_a_run_has_is_refused(run, monkeypatch):
    monkeypatch.setattr(guarded, "MAX_FILES", 5)
    for i in range(6):
        (run / "model" / f"{i}").touch()
    with pytest.raises(NotReadError, match="more than 5 files"):
        guarded.check_folder(run)
    guarded.check_folder(run, leave=("model",))


def test_a_line_without_end_is_refused(run, monkeypatch):
    monkeypatch.setattr(guarded, "LINE_LIMIT_BYTES", 10)
    (run / "manifest.jsonl").write_bytes(b"{}\n" + b"x" * 11)
    with pytest.raises(NotReadError, match="line 2 is longer than 10 bytes"):
        list(guarded.lines(run, "manifest.jsonl"))


# ---------------------------------------------------------------- what is taken for a value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" * 65 + "]" * 65, "nested too deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested too deep"),
        ("9" * 5000, "5000 digits"),
        ("-" + "9" * 30, "digits"),
        ("1e400", "not finite"),
        ("9" * 400 + ".0", "not finite"),
        ("NaN", "not finite"),
        ("[Infinity]", "not finite"),
        ("-Infinity", "not finite"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_json_that_python_cannot_hold_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        guarded.parse_json(text)


def test_json_within_the_limits_is_what_json_says():
    for value in ({"a": [1, -2.5e-3, "\udcff", None, True]}, [[[]]], "x", 0, 2**64):
        assert guarded.parse_json(json.dumps(value)) == value
    deep = "[" * 64 + "]" * 64
    assert guarded.parse_json(deep) == json.loads(deep)
    assert guarded.parse_json("[Infinity]", finite=False) == [float("inf")]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 3000, "a." * 3000 + "a = 1", "a = " + "9" * 5000, "a = 0x" + "f" * 4000, "a ="]
)
def test_toml_that_python_cannot_hold_is_refused(text):
    with pytest.raises(ValueError):
        guarded.parse_toml(text)


# ---------------------------------------------------------------- records


def test_a_name_that_is_no_utf_8_is_a_name(tmp_path):
    """File names may be any bytes; json keeps them as half characters."""
    row = {"id": "a", "split": "test", "cells": ["\udcff"], "where": "test/\udcff/0.png"}
    assert records.problem(ManifestRow, row) is None


def test_a_problem_names_its_field():
    row = {"id": "a", "split": "tset", "cells": ["x"], "where": "row 1"}
    assert str(records.problem(ManifestRow, row)).startswith("split: ")
    assert records.problem(Unfinished, {"status": "failed"}) is None


@pytest.mark.parametrize("value", [True, "1", 1.5, 2**60, -1, None, float("nan")])
def test_a_count_is_a_whole_number_of_a_size(value):
    env = {
        "regraft": "",
        "python": "",
        "versions": {},
        "device": "",
        "device_name": "",
        "threads": value,
        "data_digest": "",
        "test_digest": "",
    }
    assert str(records.problem(Environment, env)).startswith("threads: ")


# ---------------------------------------------------------------- nothing reads beside it

READING = {"read_text", "read_bytes", "open", "load_file", "safe_open", "copyfile", "copytree", "copy2", "fdopen"}
PARSING = {
    ("json", "load"),
    ("json", "loads"),
    ("tomllib", "load"),
    ("tomllib", "loads"),
    ("np", "load"),
    ("torch", "load"),
}
# file → why what it opens is no file of a run folder, or was checked before
ALLOWED = {
    "plugins.py": "regraft's own files",
    "io/guarded.py": "the reader itself",
    "io/streams.py": "the standard streams",
    "io/foreign_code.py": "a model folder; of a run, sources/run.py checks the model folder first",
    "io/atomic.py": "writes files and folders",
    "io/hashing.py": "its caller's file",
    "io/locks.py": "opens the folder to lock it, and /proc",
    "compute/launched.py": "the private folder of the launcher that started it",
    "runs/folder.py": "writes a run's files",
    "runs/ledger.py": "the ledger of test sets",
    "runs/tensors.py": "writes tensors",
    "data/decoding.py": "the user's pictures, and pipes to its own workers",
    "data/image_costs.py": "the user's pictures",
    "data/images.py": "the user's pictures",
    "data/loading.py": "the user's data",
    "data/splitting.py": "writes the manifest; reading it goes through the reader",
    "data/store.py": "the cache of features",
    "data/image_store.py": "the cache of pictures",
    "evidence/ood.py": "read_novelty checks the model folder first",
    "plan/read.py": "the plan that a user names",
    "training/checkpoints.py": "checked() looks at the whole checkpoint first",
    "pipeline/autotune.py": "the user's own cache of figures",
    "pipeline/feature_cache.py": "the cache of features",
    "pipeline/finish.py": "writes a model; read_ends checks its folders first",
    "publish/export.py": "the folder that it writes, and its own process's answer",
    "publish/fresh_check.py": "its caller's request",
    "publish/model_card.py": "text that export.py made",
    "commands/launch.py": "the private folder of its own ranks",
    "commands/predict.py": "the user's inputs",
    "commands/listing.py": "regraft's own files",
    "commands/doctor.py": "whether a folder can be written",
    "commands/verify_resume.py": "runs that it made itself a moment ago",
    "cli/app.py": "the standard streams",
    "cli/flags.py": "torch's own source",
    "cli/start.py": "writes --out",
    "formats/": "the user's tables and pictures",
    "exports/": "writes, and lines of Python for a user",
    "plan/recipes.py": "the user's recipe; the plan of a run may name none",
    "commands/search/study.py": "JSON of its own, as a database gives it back",
    "sources/": "a model folder; of a run, sources/run.py checks the model folder first",
    "report/render.py": "writes the report",
    "serving/app.py": "regraft's own page",
    "serving/local_pages.py": "a browser",
    "watching/pages.py": "regraft's own page",
}
# These read run folders: nothing in them may open a file but by the reader.
READERS = (
    "api.py",
    "commands/demo.py",
    "commands/frontier.py",
    "evidence/comparison.py",
    "exports/bundle.py",
    "pipeline/predictor.py",
    "pipeline/run.py",
    "pipeline/target_data.py",
    "report/reading.py",
    "runs/records.py",
    "runs/result.py",
    "runs/summary.py",
    "serving/model.py",
    "sources/run.py",
    "watching/following.py",
    "watching/runs.py",
    "watching/tracking.py",
)


def opens(file: Path) -> list[str]:
    """Calls of a file that open or parse a file by themselves."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        of = node.func
        name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
        owner = of.value.id if isinstance(of, ast.Attribute) and isinstance(of.value, ast.Name) else ""
        if (name in READING and owner != "guarded") or (owner, name) in PARSING:
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_reader_of_run_folders_opens_a_file_by_itself(file):
    name = file.relative_to(ROOT).as_posix()
    if name not in READERS and (name in ALLOWED or f"{file.parent.name}/" in ALLOWED):
        return
    assert opens(file) == [], f"{name} reads beside guarded.py: use it, or say in ALLOWED why not"


def test_a_listed_reason_is_of_a_file_that_is_there():
    assert all((ROOT / name).exists() for name in (*ALLOWED, *READERS))


def test_the_test_sees_a_file_that_reads_by_itself(tmp_path):
    (tmp_path / "a.py").write_text("import json\njson.loads(path.read_text())\nopen('x')\npath.open()\n")
    assert len(opens(tmp_path / "a.py")) == 4


def test_a_fault_of_regraft_is_not_called_a_damaged_run():
    """No reader turns every KeyError into words about the run."""
    broad = {"KeyError", "AttributeError", "IndexError", "TypeError"}
    for name in READERS:
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                assert not {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} & broad, name


def test_not_read_is_a_usage_error():
    assert issubclass(NotReadError, UsageError) and NotReadError.exit_code == 2


def test_the_tables_of_further_seeds_may_be_as_large_as_the_first(run):
    assert guarded.limit_of("predictions-12.csv") == guarded.limit_of("predictions.csv") > guarded.limit_of("other.csv")
    assert guarded.is_read("predictions-12.csv") and not guarded.is_read("predictions-x.csv")
