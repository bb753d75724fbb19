"""Every metric: the contract, and scikit-learn's value at random weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from regraft import plugins
from regraft.evidence.intervals import at_weights, value_of
from regraft.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    ece,
    log_loss,
    macro_f1,
    macro_f1_labels,
    mae,
    map,
    micro_f1,
    r2,
    rmse,
)

N = 120
RNG = np.random.default_rng(0)
WEIGHTS = RNG.integers(0, 4, (6, N)).astype(float)  # as a bootstrap draws them
CLASSES = RNG.integers(0, 4, N)
SCORES = np.round(RNG.dirichlet(np.ones(4), N) + 0.7 * np.eye(4)[CLASSES], 2)  # with ties
SCORES = SCORES / SCORES.sum(axis=1, keepdims=True)
BINARY = RNG.integers(0, 2, N)
P = np.round(RNG.random(N) * 0.7 + 0.3 * BINARY, 1)
TWO = np.stack([1 - P, P], axis=1)
LABELS = RNG.integers(0, 2, (N, 3)).astype(float)
LABEL_SCORES = np.round(RNG.random((N, 3)) * 0.8 + 0.2 * LABELS, 1)
NUMBERS = RNG.normal(50, 3, (N, 2))
GUESSES = NUMBERS + RNG.normal(0, 2, (N, 2))
TOP = SCORES.argmax(axis=1)
FLAGS = LABEL_SCORES >= 0.5
DATA = {"class": (CLASSES, SCORES), "labels": (LABELS, LABEL_SCORES), "numbers": (NUMBERS, GUESSES)}  # by targets


def ece_by_hand(w):
    """Bin by bin, as the paper writes it."""
    total = 0.0
    for low in np.arange(15) / 15:
        own = (SCORES.max(axis=1) > low) & (SCORES.max(axis=1) <= low + 1 / 15)
        if (w * own).sum():
            accuracy_in = np.average(CLASSES[own] == TOP[own], weights=w[own])
            confidence = np.average(SCORES.max(axis=1)[own], weights=w[own])
            total += (w * own).sum() * abs(accuracy_in - confidence)
    return total / w.sum()


REFERENCE = [
    (accuracy, CLASSES, SCORES, lambda w: sk.accuracy_score(CLASSES, TOP, sample_weight=w)),
    (balanced_accuracy, CLASSES, SCORES, lambda w: sk.balanced_accuracy_score(CLASSES, TOP, sample_weight=w)),
    (macro_f1, CLASSES, SCORES, lambda w: sk.f1_score(CLASSES, TOP, average="macro", sample_weight=w)),
    (log_loss, CLASSES, SCORES, lambda w: sk.log_loss(CLASSES, SCORES, sample_weight=w)),
    (ece, CLASSES, SCORES, lambda w: ece_by_hand(w)),
    (auc, BINARY, TWO, lambda w: sk.roc_auc_score(BINARY, P, sample_weight=w)),
    (auc, CLASSES, SCORES, lambda w: sk.roc_auc_score(CLASSES, SCORES, multi_class="ovr", sample_weight=w)),
    (map, LABELS, LABEL_SCORES, lambda w: sk.average_precision_score(LABELS, LABEL_SCORES, sample_weight=w)),
    (micro_f1, LABELS, LABEL_SCORES, lambda w: sk.f1_score(LABELS, FLAGS, average="micro", sample_weight=w)),
    (macro_f1_labels, LABELS, LABEL_SCORES, lambda w: sk.f1_score(LABELS, FLAGS, average="macro", sample_weight=w)),
    (mae, NUMBERS, GUESSES, lambda w: sk.mean_absolute_error(NUMBERS, GUESSES, sample_weight=w)),
    (rmse, NUMBERS, GUESSES, lambda w: sk.root_mean_squared_error(NUMBERS, GUESSES, sample_weight=w)),
    (r2, NUMBERS, GUESSES, lambda w: sk.r2_score(NUMBERS, GUESSES, sample_weight=w)),
]


@pytest.mark.parametrize(
    ("metric", "truth", "scores", "reference"), REFERENCE, ids=lambda v: getattr(v, "__name__", "")
)
def test_value_is_scikit_learns(metric, truth, scores, reference):
    ours = at_weights(metric, truth, scores)(WEIGHTS)
    assert ours == pytest.approx([reference(w) for w in WEIGHTS], abs=1e-10)


@pytest.mark.parametrize("name", plugins.names("metrics"))
def test_contract(name):
    metric = plugins.module("metrics", name)
    assert metric.title and isinstance(metric.higher_is_better, bool)
    assert hasattr(metric, "rows") or not metric.proportion
    assert isinstance(metric.bounded, bool)
    truth, scores = DATA[plugins.module("metrics", name).targets]
    value = at_weights(metric, truth, scores)(WEIGHTS)
    assert value.shape == (6,) and value.dtype == np.float64
    if hasattr(metric, "rows"):
        rows = metric.rows(truth, scores)
        assert rows.shape == (N,)
        assert value == pytest.approx((WEIGHTS * rows).sum(1) / WEIGHTS.sum(1))
    # doubling every row changes nothing, and the weights are all that is random
    assert at_weights(metric, truth, scores)(2 * WEIGHTS) == pytest.approx(value)
    single = [at_weights(metric, truth, scores)(w[None])[0] for w in WEIGHTS]
    assert single == pytest.approx(list(value))


@pytest.mark.parametrize("name", plugins.names("metrics"))
def test_never_nan(name):  # one row, one class, one row drawn n times
    metric = plugins.module("metrics", name)
    truth, scores = DATA[plugins.module("metrics", name).targets]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(5):
            one = at_weights(metric, truth[i : i + 1], scores[i : i + 1])(np.ones((1, 1)))
            repeated = at_weights(metric, truth, scores)(N * np.eye(N)[i : i + 1])
            assert np.isfinite(one).all() and repeated == pytest.approx(one)
        if truth.ndim == 2:
            empty = at_weights(metric, np.zeros((4, 2)), np.zeros((4, 2)))(np.ones((1, 4)))
            assert np.isfinite(empty).all()


def test_log_loss_of_a_sure_error_is_finite():
    found = value_of(log_loss, np.array([0]), np.array([[0.0, 1.0]]))
    assert found == pytest.approx(-np.log(np.finfo(float).eps))


def test_auc_without_the_other_class_is_a_guess():
    assert value_of(auc, np.array([1, 1]), TWO[:2]) == 0.5


MANY = 90  # classes, of which some have no row and some no weight
CLASS = RNG.integers(0, MANY, N)
SURE = np.round(RNG.random((N, MANY)) + np.eye(MANY)[CLASS] * RNG.random((N, 1)), 2)  # with ties
SOME = (RNG.random((N, MANY)) < 0.04).astype(float)


def by_column(score, truth, scores, w):
    """The mean of a score over the columns that have a positive and, for AUC, a negative row."""
    own = [
        score(truth[:, c], scores[:, c], sample_weight=w)
        for c in range(truth.shape[1])
        if w @ truth[:, c] > 0 and (score is sk.average_precision_score or w @ (1 - truth[:, c]) > 0)
    ]
    return np.mean(own)


@pytest.mark.parametrize(
    ("metric", "truth", "scores", "reference"),
    [
        (
            macro_f1,
            CLASS,
            SURE,
            lambda w: sk.f1_score(
                CLASS,
                SURE.argmax(1),
                average="macro",
                sample_weight=w,
                labels=np.union1d(CLASS[w > 0], SURE.argmax(1)[w > 0]),
            ),
        ),
        (
            balanced_accuracy,
            CLASS,
            SURE,
            lambda w: sk.recall_score(
                CLASS, SURE.argmax(1), average="macro", sample_weight=w, labels=np.unique(CLASS[w > 0])
            ),
        ),
        (auc, CLASS, SURE, lambda w: by_column(sk.roc_auc_score, np.eye(MANY)[CLASS], SURE, w)),
        (map, SOME, SURE, lambda w: by_column(sk.average_precision_score, SOME, SURE, w)),
    ],
    ids=lambda v: getattr(v, "__name__", "").rpartition(".")[2],
)
def test_many_classes_with_ties_are_scikit_learns(monkeypatch, metric, truth, scores, reference):
    monkeypatch.setattr("regraft.metrics._ranks.STORED", 300)  # several blocks of columns
    expected = [reference(w) for w in WEIGHTS]
    assert at_weights(metric, truth, scores)(WEIGHTS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", plugins.names("metrics"))
def test_a_bootstrap_looks_at_the_scores_once(name):
    metric = plugins.module("metrics", name)
    if not hasattr(metric, "rows") and not hasattr(metric, "at_weights"):
        pytest.skip("it computes every value anew, which it may")
    truth, scores = (x.copy() for x in DATA[plugins.module("metrics", name).targets])
    expected = at_weights(metric, truth, scores)(WEIGHTS)
    at = at_weights(metric, truth, scores)
    scores[:] = np.nan
    truth[:] = 0
    assert at(WEIGHTS) == pytest.approx(expected, abs=1e-12)
