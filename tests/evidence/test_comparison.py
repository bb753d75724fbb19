"""Scores of a run, read back row by row."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from regraft.errors import UsageError
from regraft.evidence.comparison import ranked, read_scores
from regraft.tasks.classification import Classification

HEADER = "id,where,label,predicted,p(a),p(b)\n"


@pytest.fixture
def run(tmp_path):
    """What a comparison reads of a finished run."""

    def make(predictions):
        (tmp_path / "model").mkdir()
        state = Classification().make([("a",), ("b",)], ("label",)).state()
        (tmp_path / "model" / "labels.json").write_text(json.dumps(state))
        (tmp_path / "result.json").write_text('{"status": "finished"}')
        rows = [{"id": f"r{i}", "split": "test", "cells": ["ab"[i % 2]]} for i in range(2)]
        (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (tmp_path / "predictions.csv").write_text(predictions)
        return tmp_path

    return make


def test_scores_read_back_to_the_last_bit(run):
    third = repr(1 / 3)
    folder = run(f"{HEADER}r0,x,a,a,{third},0.5\n\nr1,x,b,b,1e-300,1.0\n")
    ids, scores = read_scores(folder, 2)
    assert scores.tolist() == [[1 / 3, 0.5], [1e-300, 1.0]] and ids == ("r0", "r1")
    ids, scores = read_scores(folder, 2, {"r1"})
    assert scores.tolist() == [[1e-300, 1.0]] and ids == ("r1",)


@pytest.mark.parametrize(
    "text",
    ["", "id,where\n", HEADER, f"{HEADER}r0,x,a,a,0.5\nr1,x,b,b,0.5,0.5,0.5\n", f"{HEADER}r0,x,a,a,0.5,x\n"],
    ids=["empty", "other columns", "no rows", "ragged rows", "no number"],
)
def test_damaged_predictions_are_one_sentence(run, text):
    with pytest.raises(UsageError, match="damaged"):
        read_scores(run(text), 2)


def test_the_rank_is_by_held_out_rows_in_the_metrics_own_direction() -> None:
    def lines(*figures: float | None, higher: bool) -> Any:
        return [SimpleNamespace(held_out=f, higher_is_better=higher) for f in figures]

    assert ranked(lines(0.7, None, 0.9, 0.8, higher=True)) == [2, 3, 0, 1]
    assert ranked(lines(0.7, None, 0.9, 0.8, higher=False)) == [0, 3, 2, 1]
