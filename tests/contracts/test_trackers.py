"""What every file of trackers/ keeps."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

import pytest

from regraft import plugins
from regraft.trackers import EpochFigures, RunEnd


@pytest.fixture(params=plugins.names("trackers"))
def tracker(request):
    return plugins.module("trackers", request.param)


def test_it_says_what_it_needs(tracker):
    assert tracker.needs and all(find_spec(name) for name in tracker.needs)
    assert list(inspect.signature(tracker.track).parameters) == ["name", "params", "epochs", "end", "where"]


def test_names_of_any_kind_are_taken_and_it_says_where_they_are(tracker, tmp_path, monkeypatch):
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")  # put back afterwards
    odd = {"loss/<img src=x>": 1.0, "val/../..": 0.5, "rate/チューリップ.0": 1e-5, "loss/my_lab:Mine": 2.0}
    many = {f"key.{i}": "x" * 9000 for i in range(230)} | {"data.text": "", "π = ": "$x"}
    rows = [EpochFigures(seed, epoch, odd) for seed in (3, 4) for epoch in (0, 1)]
    end = RunEnd("killed", "Killed: gone.", {}, {}, "", [])
    said = tracker.track("<b>", many, iter(rows), lambda: end, str(tmp_path / "out"))
    assert str(tmp_path / "out") in said
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")} == {"out"}
