"""Seeds one at a time: a run goes on until its verdict is decided, and is the run with so many seeds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import regraft
from builders import largest_source, write_largest
from regraft.errors import PlanError, UsageError
from regraft.evidence import looks
from regraft.pipeline import evaluate, train
from regraft.pipeline.run import previous_run
from regraft.plan.read import read_plan
from regraft.plan.write import write_plan
from regraft.runs.ledger import ledger_path
from regraft.runs.result import finished
from regraft.runs.summary import summary
from regraft.training.signals import Interrupted

FILES = ("model/model.safetensors", "predictions.csv", "history.jsonl")


@pytest.fixture
def fit(tmp_path):
    """Fit rows whose class is the largest of three numbers, with the scratch control; → the run's folder."""
    for name, n in (("train", 60), ("val", 30), ("test", 90)):
        write_largest(tmp_path / f"{name}.csv", n)

    def run(name, seeds, resume=False):
        source = largest_source()
        settings = {
            "data.text": ["text"],
            "data.label": ["label"],
            "evaluate.controls": ["scratch"],
            "evaluate.scratch_rates": [1.0],
            "evaluate.scratch_budget": 1.0,
            "fit.epochs": 2,
            "fit.batch_size": 16,
            "fit.sharpness": 0.0,
            "run.threads": 1,
            "run.seeds": seeds,
            "probe.strengths": [0.01],
        }
        regraft.fit(tmp_path, source=source, out=tmp_path / name, settings=settings, resume=resume)
        return tmp_path / name

    return run


def ends_after(monkeypatch, seeds):
    """Let looks end after so many seeds, whatever they show."""

    def look(metric, pairs):
        seen = looks.look(metric, pairs)
        return looks.Look(seen.verdict, "decided" if len(pairs) == seeds else "")

    for module in (train, evaluate):
        monkeypatch.setattr(module, "look", look)


def read(run):
    return json.loads((run / "result.json").read_text())


def openings():
    return len(ledger_path().read_text().splitlines())


def test_a_run_that_is_killed_and_resumed_is_that_of_as_many_seeds(fit, monkeypatch):
    ends_after(monkeypatch, 4)
    monkeypatch.setenv("REGRAFT_FAILPOINT", "stop scratch 0.001, seed 3 step 3")  # after the first look
    with pytest.raises(Interrupted):
        fit("auto", "auto")
    assert openings() == 1
    monkeypatch.delenv("REGRAFT_FAILPOINT")
    auto = fit("auto", "auto", resume=True)
    assert openings() == 1  # all looks, of both processes, are one planned opening
    found = read(auto)
    assert found["test_opened"] == 1 and len(found["seeds"]) == found["verdict"]["seeds"] == 4
    assert found["looks"] == {"planned": 8, "taken": 2, "first": 3, "most": 10, "level": 0.996, "ended": "decided"}
    said = summary(auto, finished(auto))
    assert said.count("looked up to 8 times") == 2 and "test opened once, for 2 looks" in said
    assert "looked up to 8 times" in found["verdict"]["why"] and 'seeds = "auto"' in (auto / "plan.toml").read_text()

    fixed = fit("fixed", 4)
    assert read(fixed)["looks"] is None
    for name in FILES:
        assert (auto / name).read_bytes() == (fixed / name).read_bytes(), name
    other = read(fixed)
    for key in ("seeds", "mean", "test", "frontier", "scratch"):
        assert found[key] == other[key], key
    wide, narrow = (r["gain"]["scratch"] for r in (found, other))
    assert wide["value"] == narrow["value"] and wide["low"] < narrow["low"] and wide["high"] > narrow["high"]


def test_a_run_ends_at_its_first_look_where_no_seed_would_help(fit):
    found = read(fit("auto", "auto"))
    assert found["looks"]["ended"] in ("futile", "decided")  # 90 rows: nothing is open but the rows
    assert len(found["seeds"]) == 2 + found["looks"]["taken"] < 10


def test_what_cannot_be_looked_at_is_refused():
    given = {"source.ref": "bundled:efficientnet-lite0", "data.path": "flowers", "run.seeds": "auto"}
    with pytest.raises(PlanError, match=r"over scratch.* --seeds auto --controls scratch"):
        read_plan(None, given)
    with pytest.raises(PlanError, match=r"--seeds auto --set run\.spread=rows"):
        read_plan(None, given | {"evaluate.controls": ["scratch"], "run.spread": "arms"})
    with pytest.raises(PlanError, match=r"run\.seeds"):
        read_plan(None, given | {"run.seeds": "many"})
    assert read_plan(None, given | {"evaluate.controls": ["scratch"]}).run.seeds == "auto"


def test_a_run_of_three_seeds_is_not_resumed_as_one_that_looks(tmp_path):
    given = {"source.ref": "net", "data.path": "rows", "evaluate.controls": ["scratch"]}
    three, auto = (read_plan(None, given | {"run.seeds": seeds}) for seeds in (3, "auto"))
    (tmp_path / "plan.toml").write_text(write_plan(three))
    with pytest.raises(UsageError, match=r"run\.seeds: 3 → auto"):
        previous_run(tmp_path, auto, accept_changes=False)
    (tmp_path / "plan.toml").write_text(write_plan(auto))
    assert previous_run(tmp_path, auto, accept_changes=False).plan.run.seeds == "auto"
    for accept in (False, True):  # looks at test that were taken are not forgotten
        with pytest.raises(UsageError, match=r"left its number of seeds to the verdict.*cannot go on with 3"):
            previous_run(tmp_path, three, accept_changes=accept)


def test_other_test_rows_are_another_opening(tmp_path):
    kept = {}
    checkpoints = SimpleNamespace(
        done=kept.get, finish=lambda name, record, tensors: kept.update({name: SimpleNamespace(record=record)})
    )

    def opened(digest):
        job = SimpleNamespace(data=SimpleNamespace(splits=SimpleNamespace(test_digest=digest)))
        trainer = SimpleNamespace(checkpoints=checkpoints, folder=SimpleNamespace(path=tmp_path), job=job)
        return train.Trainer.open_test(trainer)

    before = openings() if ledger_path().exists() else 0
    assert [opened(digest * 64) for digest in "aabb"] == [1, 1, 1, 1]
    assert openings() == before + 2
