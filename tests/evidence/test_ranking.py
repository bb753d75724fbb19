"""Models are ranked with differences that hold together, and equal ones are rarely told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from builders import class_task
from regraft.evidence import ranking
from regraft.evidence.intervals import newcombe_paired
from regraft.evidence.ranking import Entrant, rank, simultaneous_level
from regraft.evidence.scoring import Predictions, gain
from regraft.metrics import accuracy, mae


def class_predictions(right: NDArray[np.bool_], groups: Any = None) -> Predictions:
    scores = np.where(right, 0.9, 0.1)
    ids = tuple(f"r{i}" for i in range(len(right)))
    return Predictions(ids, np.ones(len(right), int), np.stack([1 - scores, scores], 1), groups)


def share_told_apart(models: int, rows: int, draws: int) -> float:
    """Return the share of draws in which equally good models are told apart."""
    task, rng, apart = class_task("0", "1"), np.random.default_rng(0), 0
    for _ in range(draws):
        easy = rng.uniform(size=rows)  # a row is easy or hard for all of them
        entrants = [Entrant(str(i), class_predictions(rng.uniform(size=rows) < easy), 0.0) for i in range(models)]
        apart += any(not r.ties for r in rank(task, accuracy, entrants))
    return apart / draws


def test_equal_models_are_told_apart_in_one_draw_of_twenty_at_most(monkeypatch):
    # decisions/037 has the rate over thousands of draws; this has a standard error of 0.01
    assert share_told_apart(6, 150, 400) <= 0.05
    monkeypatch.setattr(ranking, "simultaneous_level", lambda models: 0.95)
    assert share_told_apart(6, 150, 100) > 0.15


def test_two_equal_models_tie_in_19_of_20_draws():
    assert share_told_apart(2, 120, 20) <= 1 / 20


def test_a_better_model_is_told_apart():
    rng = np.random.default_rng(0)
    entrants = [Entrant(str(p), class_predictions(rng.uniform(size=300) < p), 0.0) for p in (0.6, 0.9, 0.75)]
    assert [(r.name, r.ties) for r in rank(class_task("0", "1"), accuracy, entrants)] == [
        ("0.9", True),
        ("0.75", False),
        ("0.6", False),
    ]


def test_a_difference_has_newcombes_interval_at_bonferronis_level():
    right = [np.arange(40) < k for k in (30, 34, 20)]
    entrants = [Entrant(str(i), class_predictions(r), 0.0) for i, r in enumerate(right)]
    leader, second, _ = rank(class_task("0", "1"), accuracy, entrants)
    z = 2.3939797998185104  # the quantile 1 − 0.05 / 3 / 2 of the normal distribution
    low, high = newcombe_paired(0, 4, 30, 6, z)
    assert leader.name == "1" and second.difference is not None
    assert (second.difference.low, second.difference.high) == pytest.approx((low, high))
    assert [simultaneous_level(k) for k in (2, 3, 8)] == pytest.approx([0.95, 1 - 0.05 / 3, 1 - 0.05 / 28])


def test_groups_widen_the_difference():
    rng = np.random.default_rng(1)
    of_group = rng.uniform(size=20) < 0.7
    a, b = np.repeat(of_group, 10), rng.uniform(size=200) < 0.75
    apart = gain(accuracy, class_predictions(a), class_predictions(b))
    groups = tuple(f"g{i // 10}" for i in range(200))
    whole = gain(accuracy, class_predictions(a, groups), class_predictions(b, groups))
    assert whole.high - whole.low > 1.5 * (apart.high - apart.low)


def test_a_higher_level_is_a_wider_interval_of_the_bootstrap_too():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(80, 1))
    ids = tuple(map(str, range(80)))
    a, b = (Predictions(ids, truth, truth + rng.normal(size=(80, 1)) * s) for s in (1.0, 1.1))
    narrow, wide = gain(mae, a, b), gain(mae, a, b, 0.998)
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high
    error = abs(np.abs(b.scores - truth) - np.abs(a.scores - truth)).std() / 80**0.5
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3.09 / 1.96, rel=0.15), error
