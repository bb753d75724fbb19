"""Split-conformal prediction: sets of classes, and intervals around numbers, that hold the truth at a stated rate.

    a class      s = 1 − p_T(y | x)                      the set of x: all classes c with p_T(c | x) ≥ 1 − q
    numbers      s = max over outputs of |y − ŷ| ÷ σ     the interval of each output: ŷ ± q·σ
    q            the k-th smallest s of n held-out rows, k = ⌈(n + 1) · coverage⌉

p_T are the probabilities at the temperature of the run, σ the standard deviations of the training targets. The
intervals of a row's numbers hold all of them together. A set may be empty: no class is probable enough.

Held-out rows that were exchangeable with new ones, and had chosen nothing, would give this guarantee: a new row is
covered with probability ``coverage`` or more. Given the n rows, the coverage of new rows follows Beta(k, n + 1 − k)
where scores have no ties: Vovk 2012, 1209.2673, proposition 2a. Sets of this form are the smallest for their
coverage: Sadinle, Lei and Wasserman 2019, 1609.00451. Split conformal: Vovk, Gammerman and Shafer 2005, section 4.1;
absolute residuals: Lei et al. 2018, 1604.04173, section 2.2.

Val also chose the epoch, α and the temperature, which costs little coverage: docs/log.md has a simulation. Out-of-fold
rows are scored by the folds' models, not by the model. Their guarantee is approximate: Barber et al. 2021,
1905.02928, prove 1 − 2(1 − coverage) for a related rule, CV+, and see about ``coverage`` in practice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ..runs.estimates import Estimate
from ..runs.guarantees import SetRule, Sets
from .calibration import rescale
from .intervals import bootstrap, effective_rows, group_codes
from .scoring import Predictions, proportion, resample_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray
    from ..metrics import Metric
    from ..tasks import Task


# A bound is widened by this share, so that the rounding of float32, which differs by batch, drops no class.
SLACK = 1e-4


def rank_of(n: int, coverage: float) -> int:
    """Return k: the bound is the k-th smallest score of n rows. Above n there is no bound."""
    return math.ceil(round((n + 1) * coverage, 9))


def least_rows(coverage: float) -> int:
    """Return the least number of rows that have a bound at this coverage: 9 for 0.9."""
    return math.ceil(round(coverage / (1 - coverage), 9))


def law_of_coverage(n: int, coverage: float, worth: float | None = None) -> Estimate:
    """Return the expected coverage of new rows, and its middle 95 % over draws of the n held-out rows.

    ``worth`` is the effective number of rows where rows come in groups. The law is then an approximation.
    """
    from scipy.stats import beta

    k = float(rank_of(n, coverage))
    a, b = k, n + 1 - k
    if worth is not None and worth < n:
        a, b = a * (worth + 1) / (n + 1), b * (worth + 1) / (n + 1)
    law = beta(a, b)
    return Estimate(k / (n + 1), float(law.ppf(0.025)), float(law.ppf(0.975)), n)


def nonconformity(task: Task, rows: Predictions, temperature: float | None) -> FloatArray:
    """Return the score s of each row [N]: high for a truth that the model did not expect."""
    if temperature is not None:
        return np.asarray(1 - rescale(rows.scores, temperature)[np.arange(len(rows)), rows.truth])
    apart = np.abs(rows.truth.reshape(rows.scores.shape) - rows.scores) / scales(task)
    return np.asarray(apart.max(axis=1))


def scales(task: Task) -> FloatArray:
    """Return the unit of each number [C]: its standard deviation in train, or 1 where the task knows none."""
    return np.asarray(task.affine[0] if task.affine else np.ones(task.outputs), np.float64)


def has_sets(task: Task) -> bool:
    """Return whether a task has sets or intervals: one class a row by softmax, or numbers; not several labels."""
    return task.calibrates or task.has_numbers


def fit_rule(task: Task, held_out: Predictions | None, coverage: float, temperature: float | None) -> SetRule:
    """Return the rule of sets at this coverage from held-out rows; one without bounds where they are too few.

    ``temperature`` is that of the run, None for numbers.
    """
    n, least = 0 if held_out is None else len(held_out), least_rows(coverage)
    found: dict[str, Any] = {"coverage": coverage, "rows": n, "least_rows": least}
    if held_out is None or n < least:
        return SetRule(**found)
    bound = float(np.sort(nonconformity(task, held_out, temperature))[rank_of(n, coverage) - 1])
    if temperature is not None:
        least_probability = max(1 - bound, 0.0) * (1 - SLACK)
        return SetRule(**found, temperature=temperature, least_probability=least_probability)
    return SetRule(**found, half_widths=(scales(task) * bound * (1 + SLACK)).tolist())


def members(rule: SetRule, scores: NDArray[Any], divided_by: float = 1.0) -> NDArray[np.bool_]:
    """Return whether each class is in its row's set [N, C], from probabilities [N, C].

    ``divided_by`` is the temperature that these probabilities already have.
    """
    assert rule.temperature is not None and rule.least_probability is not None
    found: NDArray[np.bool_] = rescale(scores, rule.temperature / divided_by) >= rule.least_probability
    return found


def bounds(rule: SetRule, scores: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Return the ends [N, C] of the interval around each number [N, C]."""
    half = np.asarray(rule.half_widths, np.float64)
    return scores - half, scores + half


def covered(rule: SetRule, rows: Predictions) -> NDArray[np.bool_]:
    """Return whether each row's set has its class, or its intervals have all of its numbers [N]."""
    if rule.half_widths is None:
        return np.asarray(members(rule, rows.scores)[np.arange(len(rows)), rows.truth])
    low, high = bounds(rule, rows.scores)
    truth = rows.truth.reshape(rows.scores.shape)
    return np.asarray(((low <= truth) & (truth <= high)).all(axis=1))


@dataclass(frozen=True)
class _Mean:
    """The mean of a value that each row has."""

    title: str
    higher_is_better: bool = False
    proportion: bool = False
    bounded: bool = False

    def rows(self, values: Any, _: Any) -> Any:
        return values


def measure_sets(
    task: Task,
    held_out: Predictions | None,
    test: Predictions,
    coverage: float,
    *,
    temperature: float | None = None,
    by: Literal["val", "cross-validation"] = "val",
) -> Sets:
    """Return the sets of held-out rows and their figures on test: coverage, mean size and the share of empty ones."""
    rule = fit_rule(task, held_out, coverage, temperature)
    grouped = held_out is not None and len(held_out) > 0 and in_groups(held_out)
    found: dict[str, Any] = {**rule.model_dump(), "by": by, "grouped": grouped}
    if held_out is None or not rule.exists:
        return Sets(**found)
    worth = effective_rows(covered(rule, held_out).astype(float), held_out.groups)
    found["law"] = law_of_coverage(len(held_out), coverage, worth)
    found["test"] = proportion(covered(rule, test).astype(float), test.groups)
    if rule.half_widths is None:
        sizes = members(rule, test.scores).sum(axis=1).astype(float)
        mean = cast("Metric", _Mean("size of sets"))
        found["size"] = bootstrap(mean, sizes, sizes, groups=test.groups, resamples=resample_count(len(test)))
        found["empty"] = proportion((sizes == 0).astype(float), test.groups)
    return Sets(**found)


def in_groups(rows: Predictions) -> bool:
    """Return whether some group has several of these rows."""
    return int(group_codes(rows.groups, len(rows)).max()) + 1 < len(rows)
