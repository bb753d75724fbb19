"""Abstention: the confidence above which the error among the accepted rows is proved to be small.

    confidence      c(x) = max over classes of p_T(c | x), at the temperature of the run
    accepted        c(x) > λ
    null hypothesis the error among accepted rows is above ``max_error``
    rejected        if P(Binomial(m, max_error) ≤ e) ≤ 0.05, for e errors among m accepted held-out rows

This is the exact test that belongs to the upper bound of Clopper and Pearson 1934. Thresholds are tested from the
highest down, and the first that is not rejected ends the test, so all of them together have the level of one: learn
then test with a fixed sequence, Angelopoulos et al. 2021, 2110.01052; for abstention by exact bounds, Geifman and
El-Yaniv 2017, 1705.08500. Confidences alone choose the thresholds: those that accept as many held-out rows as one more
error is allowed for (59, 93, 124 … for 5 %). Given its threshold, the rows above it are independent draws. The level
is exact where the error among accepted rows only rises as the threshold falls, as it does for a useful confidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..runs.guarantees import Abstention, RiskPoint, Threshold
from .calibration import rescale
from .conformal import in_groups
from .scoring import Predictions, proportion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray


LEVEL = 0.05  # probability that the error among accepted rows is above the bound after all

CURVE_POINTS = 50  # of the risk-coverage curve, at most


def allowed_errors(rows: NDArray[np.int64], max_error: float) -> NDArray[np.int64]:
    """Return the most errors among so many accepted rows [N] that still prove ``max_error``; −1: not even none."""
    from scipy.stats import binom

    most = binom.ppf(LEVEL, rows, max_error)
    return np.asarray(np.where(binom.cdf(most, rows, max_error) <= LEVEL, most, most - 1), np.int64)


def least_accepted(max_error: float) -> int:
    """Return the least number of accepted rows that prove ``max_error`` without an error: 59 for 5 %."""
    return int(np.ceil(round(float(np.log(LEVEL) / np.log1p(-max_error)), 9)))


def find_threshold(confidence: FloatArray, wrong: NDArray[np.bool_], max_error: float) -> tuple[float, int] | None:
    """Return the lowest proved threshold and the held-out rows above it; None where none is proved.

    Takes the confidence of held-out rows [N], and whether they are wrong [N].
    """
    n, least = len(confidence), least_accepted(max_error)
    if n < least:
        return None
    order = np.argsort(-confidence, kind="stable")
    # λ of accepting the first j rows is the confidence of the next one, and 0 of accepting all
    thresholds = np.append(confidence[order], 0.0)
    allowed = allowed_errors(np.arange(1, n + 1), max_error)
    steps = np.flatnonzero(np.diff(allowed, prepend=-1)) + 1  # rows for which one more error is allowed
    errors = np.cumsum(wrong[order])
    found = None
    for j in np.append(steps, n):
        threshold = thresholds[j]
        m = int((confidence > threshold).sum())  # fewer than j where confidences are equal
        if m < least or (found and m == found[1]):
            continue
        if errors[m - 1] > allowed[m - 1]:
            break
        found = float(threshold), m
    return found


def confidence_of(rows: Predictions, temperature: float) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the highest probability of each row [N] at a temperature, and whether its class is wrong [N]."""
    wrong: NDArray[np.bool_] = rows.scores.argmax(axis=1) != rows.truth
    return np.asarray(rescale(rows.scores, temperature).max(axis=1)), wrong


def accepts(rule: Threshold, scores: NDArray[Any], divided_by: float = 1.0) -> NDArray[np.bool_]:
    """Return whether each row is accepted [N], from probabilities [N, C].

    ``divided_by`` is the temperature that these probabilities already have.
    """
    assert rule.temperature is not None and rule.threshold is not None
    found: NDArray[np.bool_] = rescale(scores, rule.temperature / divided_by).max(axis=1) > rule.threshold
    return found


def measure_abstention(
    held_out: Predictions | None,
    test: Predictions,
    max_error: float,
    *,
    temperature: float | None,
    by: Literal["val", "cross-validation"] = "val",
) -> Abstention:
    """Return the threshold that held-out rows prove, and what it accepts on test; without one, why there is none.

    ``temperature`` is that of the run; None: the task has none, and no threshold.
    """
    n, least = 0 if held_out is None else len(held_out), least_accepted(max_error)
    found: dict[str, Any] = {"max_error": max_error, "rows": n, "least_rows": least, "by": by}
    if held_out is None or temperature is None:
        why = "it takes one class a row, and rows for val or for folds"
        return Abstention(**found, why=why)
    found |= {"temperature": temperature, "grouped": in_groups(held_out)}
    confidence, wrong = confidence_of(test, temperature)
    found["curve"] = risk_curve(confidence, wrong)
    own, own_wrong = confidence_of(held_out, temperature)
    chosen = find_threshold(own, own_wrong, max_error)
    if chosen is None:
        cannot = f"{least} accepted rows without an error would prove it"
        have = f"there are {n} rows" if n < least else f"the most confident of {n} rows have too many errors"
        return Abstention(**found, why=f"{cannot}, and {have}")
    found["threshold"], found["accepted_rows"] = chosen
    found["errors"] = int(own_wrong[own > chosen[0]].sum())
    inside = confidence > chosen[0]
    found["accepted"] = proportion(inside.astype(float), test.groups)
    if inside.any():
        groups = None if test.groups is None else [g for g, y in zip(test.groups, inside, strict=True) if y]
        found["error"] = proportion(wrong[inside].astype(float), groups)
    return Abstention(**found)


def risk_curve(confidence: FloatArray, wrong: NDArray[np.bool_]) -> list[RiskPoint]:
    """Return the error among the most confident rows by their share, at most CURVE_POINTS points."""
    order = np.argsort(-confidence, kind="stable")
    sorted_, errors, n = confidence[order], np.cumsum(wrong[order]), len(order)
    ends = np.flatnonzero(np.append(sorted_[1:] < sorted_[:-1], True))  # equal confidences are accepted together
    some = ends[np.unique(np.linspace(0, len(ends) - 1, CURVE_POINTS).round().astype(int))]
    return [
        RiskPoint(confidence=float(sorted_[i]), accepted=float((i + 1) / n), error=float(errors[i] / (i + 1)))
        for i in some
    ]
