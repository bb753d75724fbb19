"""``regraft choose``: sources are ranked on the same folds, with honest ties; test stays closed."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import nn

import regraft
from builders import FLOATS
from regraft.commands import choose as command
from regraft.commands.choose import Candidate, Choice, Control, LeftOut, control
from regraft.data.types import content_of
from regraft.errors import DataError, DivergedError, PlanError, SourceError, UsageError
from regraft.model.types import Source
from regraft.pipeline import candidates
from regraft.pipeline.candidates import Probed, Rows, fit, read_rows
from regraft.pipeline.prepare import prepare
from regraft.plan.read import check, read_plan
from regraft.runs.estimates import Estimate
from regraft.runs.ledger import ledger_path

SETTINGS = {"run.threads": 1, "run.cache": "off", "run.device": "cpu"}
WIDTH = 12


@pytest.fixture(autouse=True)
def threads() -> Any:
    """A command sets torch's threads for the whole process: put them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net(columns: Sequence[int], name: str, noise: float = 0.0) -> Source:
    """Return a source whose features are some columns of a row of WIDTH numbers, each with a fixed tilt."""
    model = nn.Sequential()
    model.body = nn.Linear(WIDTH, len(columns))
    model.head = nn.Linear(len(columns), 2)
    with torch.no_grad():
        model.body.weight.zero_()
        model.body.bias.zero_()
        for i, column in enumerate(columns):
            model.body.weight[i, column] = 3.0**i
    return Source.from_module(model.eval(), head="head", preprocess=FLOATS, example=torch.zeros(2, WIDTH), name=name)


Planted = Callable[..., Path]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """Write rows of numbers in three splits; their class is a noisy function of columns 0 to 2."""

    def write(
        n: int = 120, test: int = 30, seed: int = 0, spoil: Callable[[list[Any]], list[Any]] | None = None
    ) -> Path:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n + test, WIDTH)).round(4)
        classes = np.array(["no", "yes"])[(x[:, :3].sum(1) + rng.normal(size=len(x)) > 0).astype(int)]
        path = tmp_path / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "label", "split"])
            for i, (row, label) in enumerate(zip(x, classes, strict=True)):
                split = "test" if i >= n else "val" if i % 4 == 0 else "train"
                cells = [" ".join(map(str, row)), label, split]
                out.writerow(spoil(cells) if spoil and split == "test" else cells)
        return path

    return write


def compared(data: Path, sources: Sequence[str | Source], **how: Any) -> Choice:
    return regraft.choose(data, sources, settings=SETTINGS | how.pop("settings", {}), **how)


# ---------------------------------------------------------------- the ranking


def test_the_ranking_is_that_of_scikit_learns_logistic_regression(planted):
    data = planted()
    columns = {"weak": [0, 5, 6], "all three": [0, 1, 2], "noise": [7, 8, 9], "two": [0, 1, 5]}
    choice = compared(data, [net(c, name) for name, c in columns.items()])
    rows, _ = read_rows(check({"data": {"path": str(data)}, "source": {"ref": ""}}))
    x = np.array([list(map(float, e.inputs[0].split())) for e in rows.examples])
    y = [e.cells[0] for e in rows.examples]
    right = {
        name: float(np.mean(cross_val_predict(LogisticRegression(), x[:, own], y, cv=rows.folds) == y))
        for name, own in columns.items()
    }
    assert [c.source for c in choice.candidates] == sorted(right, key=lambda name: -right[name])
    assert choice.leader == "all three" and choice.rows == 120 and choice.folds == 5
    for candidate in choice.candidates:
        # features of noise get a strong λ, which scikit-learn's default is not
        near = 0.1 if candidate.source == "noise" else 0.03
        assert candidate.value.value == pytest.approx(right[candidate.source], abs=near)
        assert candidate.value.n == 120 and candidate.seconds > 0
    first, *others = choice.candidates
    assert first.difference is None and first.ties
    for other in others:
        assert other.difference is not None
        assert other.difference.value == pytest.approx(other.value.value - first.value.value)
        assert other.ties == (other.difference.high >= 0) == (other.source in choice.ties)
    assert choice.candidates[-1].source == "noise" and not choice.candidates[-1].ties


def test_two_copies_of_a_source_tie(planted):
    choice = compared(planted(), [net([0, 1, 2], "a"), net([0, 1, 2], "a"), net([7], "noise")])
    assert [c.source for c in choice.candidates[:2]] == ["a", "a (2)"] and choice.ties == ["a (2)"]
    assert choice.candidates[0].value == choice.candidates[1].value
    assert "a and a (2) tie" in str(choice)


# ---------------------------------------------------------------- folds and rows


def test_folds_are_the_same_for_every_source_and_keep_groups_and_copies_whole(planted, monkeypatch):
    data = planted(80)
    with data.open("a", encoding="utf-8") as file:
        text = " ".join(["0.5"] * WIDTH)  # more copies than a fold has rows of their class
        file.writelines(f"{text},yes,{split}\n" for split in ["train", "val"] * 8)
    seen: list[tuple[tuple[str, ...], ...]] = []
    fit_probe = candidates.fit_probe

    def noted(train: Any, *args: Any, **how: Any) -> Any:
        seen.append((train.ids, *(tuple(train.ids[i] for i in judge) for _, judge in how["folds"])))
        return fit_probe(train, *args, **how)

    monkeypatch.setattr(candidates, "fit_probe", noted)
    choice = compared(data, [net([0, 1], "a"), net([2, 3], "b")])
    assert choice.folds == 5 and len(seen) == 10 and seen[:5] == seen[5:]
    for ids, *inner in seen[:5]:  # λ is chosen on a fold's own training rows
        assert len(inner) == 3 and sorted(i for judge in inner for i in judge) == sorted(ids)
        assert max(Counter(map(content_of, ids)).values()) in (1, 16)
    every = {i for ids, *_ in seen[:5] for i in ids}
    assert len(every) == choice.rows == 96


def test_test_rows_decide_nothing_and_the_ledger_is_not_touched(planted):
    sources = [net([0, 1, 2], "a"), net([0, 5, 6], "b")]
    opened: list[str] = []
    honest = compared(planted(), sources, say=opened.append)

    def poison(cells: list[Any]) -> list[Any]:
        text, label, split = cells
        numbers = [str(1e6 * float(v)) for v in text.split()]
        return [" ".join(numbers), "yes" if label == "no" else "no", split]

    poisoned = compared(planted(spoil=poison), sources)

    def timeless(choice: Choice) -> Any:
        return replace(choice, candidates=[replace(c, seconds=0.0) for c in choice.candidates])

    assert timeless(honest) == timeless(poisoned)
    assert not ledger_path().exists()


def test_test_rows_are_not_given_to_a_network(planted, monkeypatch):
    read: list[str] = []

    def watched(row: tuple[str, ...]) -> torch.Tensor:
        read.append(row[0])
        return FLOATS.one(row)

    source = net([0, 1], "a")
    source.preprocess = replace(FLOATS, one=watched)
    data = planted()
    for finetune in (0, 2):
        compared(data, [source, net([2], "b")], finetune=finetune, settings={"fit.epochs": 1})
    with data.open(encoding="utf-8") as file:
        test = {r["text"] for r in csv.DictReader(file) if r["split"] == "test"}
    assert len(test) == 30 and len(set(read)) == 120 and not test & set(read)
    rows, _ = read_rows(check({"data": {"path": str(data)}, "source": {"ref": ""}}))
    assert not rows.splits.test and not rows.whole.test  # no job gets them


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_tasks_are_compared_and_groups_stay_whole(tmp_path, task):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, WIDTH)).round(4)
    y = x[:, :3].sum(1)
    data = tmp_path / "rows.csv"
    with data.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "patient"])
        for i, row in enumerate(x):
            label = f"{y[i]:.3f}" if task == "regression" else "high;even" if y[i] > 0 else "low"
            out.writerow([" ".join(map(str, row)), label, f"p{i // 4}"])
    settings = {"data.group": "patient", "data.label": ["label"], "task.name": task}
    choice = compared(data, [net([7, 8], "noise"), net([0, 1, 2], "signal")], settings=settings)
    assert choice.leader == "signal" and not choice.ties
    behind = choice.candidates[1].difference
    assert behind is not None and behind.value < behind.high < 0  # negative is worse for every metric
    rows, _ = read_rows(
        check(
            {
                "data": {"path": str(data), "group": "patient", "label": ["label"]},
                "task": {"name": task},
                "source": {"ref": ""},
            }
        )
    )
    for train, judge in rows.folds:
        assert not {rows.examples[i].group for i in train} & {rows.examples[i].group for i in judge}
    assert None not in rows.units


def test_many_rows_are_bounded_and_it_is_said(planted, monkeypatch):
    monkeypatch.setattr(candidates, "MAX_ROWS", 60)
    monkeypatch.setattr(candidates, "MAX_INNER_ROWS", 40)
    choice = compared(planted(), [net([0, 1, 2], "a"), net([0], "b")])
    assert choice.rows == 60 and "60 of 120 labelled rows" in str(choice) and "one of 3 inner folds" in str(choice)


# ---------------------------------------------------------------- pruning


def test_with_too_many_sources_the_best_by_h_score_are_probed(planted, monkeypatch):
    columns = {"noise": [7, 8, 9], "all three": [0, 1, 2], "two": [5, 0, 1], "one": [5, 6, 0]}
    sources = [net(c, name) for name, c in columns.items()]
    data = planted()
    choice = compared(data, sources, most=2)
    assert [c.source for c in choice.candidates] == ["all three", "two"]
    assert [x.source for x in choice.pruned] == ["noise", "one"]
    assert all("H-score" in x.why for x in choice.pruned) and "pruned: one: " in str(choice)
    monkeypatch.setattr(candidates, "h_score", lambda *_: pytest.fail("H-score without need"))
    assert not compared(data, sources, most=4).pruned


# ---------------------------------------------------------------- the control order


def test_the_control_order_is_named_and_compared():
    def known(name: str, parameters: int, share: float | None, random: bool = False) -> Probed:
        return Probed(name, name, False, parameters, share, random)

    one, two, big = known("one", 10, 0.7), known("two", 5, 0.8), known("big", 99, None, random=True)
    assert vars(control([one, two, big], "two")) == {"order": "ImageNet accuracy", "source": "two", "same": True}
    unknown = known("unknown", 7, None)
    assert vars(control([one, two, unknown, big], "two")) == {
        "order": "number of parameters",
        "source": "one",
        "same": False,
    }


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("folds", [None, 3])
def test_the_best_are_fine_tuned_on_val_or_the_same_folds(planted, folds):
    sources = [net([7, 8, 9], "noise"), net([0, 1, 2], "all three"), net([0, 1, 5], "two")]
    settings = {"fit.epochs": 2} | ({"data.folds": folds} if folds else {})
    choice = compared(planted(), sources, finetune=2, settings=settings)
    assert {c.source for c in choice.finetuned} == {"all three", "two"}
    assert choice.finetuned_on == ("folds" if folds else "val")
    assert {c.value.n for c in choice.finetuned} == {120 if folds else 30}
    assert choice.leader == choice.finetuned[0].source
    assert "accuracy of a fit, on " in str(choice)


def test_only_what_was_compared_is_called_best_or_behind():
    def row(name: str, difference: float | None) -> Candidate:
        apart = None if difference is None else Estimate(difference, difference - 0.04, difference + 0.04, 90)
        return Candidate(name, Estimate(0.9, 0.8, 0.95, 90), 0.2, apart, apart is not None and apart.high >= 0, 1.0)

    three = [row("a", None), row("b", -0.01), row("c", -0.02)]
    by = Control("ImageNet accuracy", "c", False)
    rest: dict[str, Any] = {"control": by, "left_out": [], "notes": [], "next": "regraft fit"}
    probed = Choice("data", "accuracy", 90, 5, three[:2], [], "", "a", ["b"], pruned=[LeftOut("c", "H")], **rest)
    assert "c, which was pruned by its H-score and not compared." in str(probed)
    two = [row("a", None), row("b", -0.05)]
    said = str(Choice("data", "accuracy", 90, 5, three, two, "val", "a", [], pruned=[], **rest))
    assert "a is the best of the 2 that were fine-tuned. Not fine-tuned, though the probe does not tell" in said
    assert "them apart: c." in said and "one would take c, which was not fine-tuned." in said
    rest["control"] = replace(by, source="b")
    assert "b, which is behind." in str(Choice("d", "x", 9, 5, two, [], "", "a", [], pruned=[], **rest))
    assert "b, which ties with the leader." in str(Choice("d", "x", 9, 5, two, [], "", "a", ["b"], pruned=[], **rest))


def test_a_fit_that_diverges_costs_no_other_answer(planted, monkeypatch):
    def failing(plan: Any, rows: Any, candidate: Probed) -> Any:
        if candidate.name == "two":
            raise DivergedError("the loss is not finite")
        return fit(plan, rows, candidate)

    monkeypatch.setattr(command, "fit", failing)
    sources = [net([7, 8, 9], "noise"), net([0, 1, 2], "all three"), net([0, 1, 5], "two")]
    choice = compared(planted(), sources, finetune=3, settings={"fit.epochs": 2})
    assert {c.source for c in choice.finetuned} == {"all three", "noise"}
    assert [(x.source, x.why) for x in choice.left_out] == [("two", "its fit failed: the loss is not finite")]
    choice = compared(planted(), sources, finetune=2, settings={"fit.epochs": 2})
    assert not choice.finetuned and len(choice.candidates) == 3 and "fewer than two fits succeeded" in str(choice)


@pytest.mark.parametrize("folds", [None, 3])
def test_what_is_fine_tuned_is_the_plans_own_fit(planted, folds):
    """Not a fit of all blocks at the best α."""
    settings = {"fit.recipe": "probe"} | ({"data.folds": folds} if folds else {})
    sources = [net([0, 1, 2], "all three"), net([7, 8, 9], "noise")]
    seen = []

    def noted(plan: Any, **how: Any) -> Any:
        job = prepare(plan, **how)
        seen.append((job.plan.freezing["name"], job.plan.fit.alpha, job.plan.fit.epochs))
        return job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "prepare", noted)
        choice = compared(planted(), sources, finetune=2, settings=settings)
    assert seen == [("head_only", 0.0, 1)] * 2 and choice.leader == "all three"
    assert {"freezing.name=head_only", "fit.alpha=0.0"} <= {w.replace('"', "") for w in shlex.split(choice.next)}


def test_fits_by_folds_are_those_of_the_named_point(planted):
    source = Probed("all three", net([0, 1, 2], "all three"), False)
    fixed = SETTINGS | {"data.path": str(planted()), "data.folds": 3, "fit.epochs": 2}
    fixed |= {"fit.lr": 1e-2, "fit.allow_large_lr": True}

    def scores(**settings: Any) -> Any:
        plan = read_plan(None, fixed | {"source.ref": "all three"} | settings)
        return fit(plan, read_rows(plan)[0], source).rows.scores

    probe, nearer, end = (scores(**{"fit.alpha": alpha}) for alpha in (0.0, 0.1 * 3, 1.0))
    assert not np.array_equal(probe, nearer) and not np.array_equal(nearer, end)
    with pytest.raises(PlanError, match=r"fit\.alpha: folds are scored at .* not 0\.55"):
        scores(**{"fit.alpha": 0.55})


def test_a_class_of_two_rows_leaves_inner_folds(planted):
    """Each training half has one row of it, which no stratified folds could divide."""
    strata = ["a"] * 40 + ["b"] * 40 + ["rare"] * 2
    rows = Rows(None, None, None, None, strata, [None] * 82, 5)  # type: ignore[arg-type]
    assert len(rows.folds) == 2 and [len(inner) for inner in rows.inner] == [3, 3]
    for (train, _), inner in zip(rows.folds, rows.inner, strict=True):
        assert sorted(i for _, judge in inner for i in judge) == list(range(len(train)))
    groups = Rows(None, None, None, None, ["a", "b"] * 40, [f"g{i // 40}" for i in range(80)], 5)  # type: ignore[arg-type]
    assert len(groups.folds) == 2 and groups.inner == [[], []]


# ---------------------------------------------------------------- the next command and what is refused


def test_the_next_command_carries_the_settings(planted):
    choice = compared(planted(), [net([0, 1, 2], "a"), net([7], "b")], settings={"data.folds": 4, "run.cache": "off"})
    words = shlex.split(choice.next)
    assert words[:2] == ["regraft", "fit"] and words[words.index("--source") + 1] == "a"
    assert {"data.folds=4", 'run.cache="off"', "run.threads=1"} <= set(words) and choice.next in str(choice)


def test_the_next_command_is_one_that_fit_takes():
    """Not with ranges, which fit refuses; with leave for code where the plan had it."""
    tree = {"source": {"ref": "x"}, "data": {"path": "rows.csv"}, "tune": {"ranges": {"fit.epochs": [1, 2]}}}
    for allowed in (False, True):
        said = command.next_command(check(tree, allow_code=allowed), "a")
        assert "tune" not in said and ("--allow-code" in shlex.split(said)) == allowed


@pytest.mark.parametrize(
    ("sources", "how", "words"),
    [
        (["random:timm/test_resnet"], {}, "two sources or more"),
        (["a", "b"], {"most": 1}, "--most takes 2 or more"),
        (["a", "b"], {"finetune": 1}, "--finetune takes 2 or more"),
        (["a", "b"], {"settings": {"source.weights": "w.pth"}}, "source.weights"),
    ],
)
def test_arguments_that_compare_nothing_are_refused(planted, sources, how, words):
    with pytest.raises(UsageError, match=words):
        compared(planted(), sources, **how)


def test_a_source_that_cannot_be_used_is_named_and_the_others_go_on(planted):
    data, good = planted(), [net([0, 1, 2], "a"), net([7], "b")]
    bad = ["timm:no_such_model", "random:timm/test_resnet", "bundled:nothing"]
    choice = compared(data, [*good, *bad])
    assert [x.source for x in choice.left_out] == bad and len(choice.candidates) == 2
    assert "takes images" in choice.left_out[1].why and "the nearest: " in choice.left_out[0].why
    with pytest.raises(SourceError, match=r"1 of 4 sources can be used .* two are needed: timm:no_such_model: "):
        compared(data, [good[0], *bad])


def test_features_that_are_not_finite_leave_a_source_out(planted):
    broken = net([0], "broken")
    with torch.no_grad():
        broken.backbone.get_parameter("body.weight").fill_(torch.inf)
    choice = compared(planted(), [broken, net([0, 1], "a"), net([7], "b")])
    assert choice.left_out[0].source == "broken" and "not finite" in choice.left_out[0].why


def test_too_few_rows_for_folds_are_refused(tmp_path):
    data = tmp_path / "few.csv"
    text = " ".join(["1"] * WIDTH)
    data.write_text(f"text,label,split\n{text} ,a,train\n{text},b,train\n {text},b,train\n{text}  ,a,test\n")
    with pytest.raises(DataError, match='"a" has 1'):
        compared(data, [net([0], "a"), net([1], "b")])


def test_auto_is_what_is_here_and_is_never_fetched(planted, monkeypatch):
    monkeypatch.setattr(command, "local_references", lambda kind: ["timm:here", "b"] if kind == "text" else [])
    loaded: list[tuple[str, bool]] = []

    def load(ref: str, options: Any) -> Source:
        loaded.append((ref, options.offline))
        return net([0, 1], ref)

    monkeypatch.setattr(candidates, "load_source", load)
    choice = compared(planted(), ["auto", "b"])
    assert loaded == [("b", False), ("timm:here", True)] and len(choice.candidates) == 2
    monkeypatch.setattr(command, "local_references", lambda kind: [])
    with pytest.raises(UsageError, match=r"too few sources for texts .*regraft\[offline\]"):
        compared(planted(), ["auto"])
