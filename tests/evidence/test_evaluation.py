"""Estimates and paired gains."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.errors import DataError
from regraft.evidence.intervals import newcombe_paired, wilson
from regraft.evidence.scoring import Predictions, at_threshold, estimates, gain, pair_rows
from regraft.metrics import accuracy, log_loss, macro_f1, mae, micro_f1
from regraft.tasks.classification import Classification
from regraft.tasks.multilabel import MultiLabel
from regraft.tasks.regression import Regression

TASK = Classification().make([("a",), ("b",)], ("label",))
EMPTY = Predictions((), np.zeros(0, int), np.zeros((0, 2)))


def scored(truth, predicted, groups=None):
    """Two classes, sure scores."""
    ids = tuple(f"r{i}" for i in range(len(truth)))
    return Predictions(ids, np.array(truth), 0.1 + 0.8 * np.eye(2)[predicted], groups)


def test_estimates_by_hand():
    found = estimates(
        TASK, {"accuracy": accuracy, "log_loss": log_loss}, scored([0] * 10 + [1] * 10, [0] * 10 + [1] * 6 + [0] * 4)
    )
    assert found["accuracy"].value == 0.8 and found["accuracy"].n == 20
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx(wilson(16, 20))
    assert found["log_loss"].value == pytest.approx(-(0.8 * np.log(0.9) + 0.2 * np.log(0.1)))
    assert found["log_loss"].low < found["log_loss"].value < found["log_loss"].high


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(0, 2, 30), 5)  # five pictures of each patient
    groups = tuple(f"p{i // 5}" for i in range(150))
    alone = estimates(TASK, {"a": accuracy}, scored([1] * 150, right))["a"]
    grouped = estimates(TASK, {"a": accuracy}, scored([1] * 150, right, groups))["a"]
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)
    a, b = scored([1] * 150, right, groups), scored([1] * 150, [0] * 150, groups)
    free = gain(accuracy, scored([1] * 150, right), scored([1] * 150, [0] * 150))
    assert gain(accuracy, a, b).high - gain(accuracy, a, b).low > 1.8 * (free.high - free.low)


@pytest.mark.fault(46)
@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("n", [1, 4])
def test_all_right_or_all_wrong_is_finite(n, predicted):
    metrics = {"accuracy": accuracy, "macro_f1": macro_f1, "log_loss": log_loss}
    for name, found in estimates(TASK, metrics, scored([1] * n, [predicted] * n)).items():
        assert np.isfinite(found.value) and found.has_interval == (name == "accuracy")  # Wilson's; others: rows alike
    for name, metric in metrics.items():
        found = gain(metric, scored([1] * n, [predicted] * n), scored([1] * n, [predicted] * n))
        assert found.value == 0 and found.has_interval == (name == "accuracy")
    assert gain(accuracy, scored([1] * n, [1] * n), scored([1] * n, [1] * n)).low < 0


def test_gain_is_newcombes_and_positive_is_better():
    truth = [1] * 21
    before = scored(truth, [1] * 2 + [0] * 19)
    after = scored(truth, [1] * 1 + [0] * 1 + [1] * 7 + [0] * 12)
    found = gain(accuracy, after, before)
    assert found.value == pytest.approx(6 / 21)
    assert (found.low, found.high) == pytest.approx(newcombe_paired(7, 1, 1, 12))
    worse = gain(log_loss, before, after)
    assert worse.value < 0 and gain(log_loss, after, before).value == pytest.approx(-worse.value)
    ids = ("r0", "r1")
    near = Predictions(ids, np.zeros((2, 1)), np.array([[1.0], [2.0]]))
    far = Predictions(ids, np.zeros((2, 1)), np.array([[3.0], [4.0]]))
    assert gain(mae, near, far).value == pytest.approx(2.0)


def test_gain_pairs_rows_by_id():
    a = scored([0, 1, 1], [0, 1, 0])
    turned = Predictions(a.ids[::-1], a.truth[::-1], a.scores[::-1])
    assert gain(accuracy, a, turned).value == 0
    assert (pair_rows(a, turned)[1].scores == a.scores).all()
    with pytest.raises(DataError, match="rows differ"):
        gain(accuracy, a, scored([0, 1], [0, 1]))
    with pytest.raises(DataError, match="different labels"):
        gain(accuracy, a, scored([0, 0, 1], [0, 1, 0]))
    with pytest.raises(DataError, match="no rows"):
        gain(accuracy, EMPTY, EMPTY)
    with pytest.raises(DataError, match="no rows"):
        estimates(TASK, {"accuracy": accuracy}, EMPTY)


def test_labels_are_counted_at_the_tasks_threshold():
    task = MultiLabel(threshold=0.9).make([("x",), ("y",)], ("tags",))
    rows = Predictions(("a", "b"), np.eye(2), np.array([[0.95, 0.6], [0.1, 0.8]]))
    assert estimates(task, {"f": micro_f1}, rows)["f"].value == pytest.approx(2 / 3)
    assert at_threshold(mae, task) is mae
    assert at_threshold(micro_f1, Regression().make([("1",), ("2",)], ("y",))) is micro_f1
