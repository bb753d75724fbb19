"""Figures by the values of a column, and each value compared with all other rows.

Each value has its metrics with their own 95 % intervals. The primary metric is also compared with that of all other
rows, and the differences of all values of all columns hold together at 95 %. Each of K has the level 1 − 0.05 ÷ K
(Bonferroni), so that without a weak value none is called worse in at least 95 % of all draws of the rows:

    a proportion       exact limits of both shares, squares add       Zou and Donner 2008, Stat. Med. 27:1693
    another metric     difference ± t · standard error, by bootstrap  Efron and Tibshirani 1993, ch. 6 and 13

t has one degree of freedom fewer than the smaller side has rows, or groups. The standard error of a metric in [0, 1]
is at least 1 ÷ (n + 2), because rows that are alike show no spread. A metric that is no mean over rows, such as
macro-F1, depends on how many rows there are. The interval then also covers the difference less the mean difference that
random subsets of the same size show. A value whose own figure has no interval is not called worse: AUC of rows of one
class is 0.5 whatever the model does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan, nan, sqrt
from typing import TYPE_CHECKING, cast

import numpy as np

from ..metrics import Metric
from ..runs.estimates import Estimate
from ..runs.slices import MIN_GROUPS, MIN_ROWS, FewRows, Slice, Slices, SliceValue
from .intervals import LEVEL, at_weights, effective_rows, exact_difference, group_codes, resample
from .scoring import MAX_DRAWS, PerRow, Predictions, at_threshold, estimates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray
    from ..tasks import Task

RESAMPLES = 1_000  # of a standard error, which they give to 2 %

RANDOM_SUBSETS = 200  # that show how a metric depends on the number of rows


def slice_rows(
    task: Task, metrics: Mapping[str, Metric], scored: Predictions, columns: Mapping[str, Sequence[str]]
) -> Slices:
    """Return the metrics by value of each column, the worst value first, and the simultaneous differences.

    ``columns`` has a value [N] for each row, in the order of ``scored``. Values with fewer than MIN_ROWS rows are
    pooled, and not compared. Neither is a value whose rows come from fewer than MIN_GROUPS groups.
    """
    masks = {name: masks_of(values) for name, values in columns.items()}
    codes = group_codes(scored.groups, len(scored))
    compared = {name: [m for m in found.values() if comparable(m, codes)] for name, found in masks.items()}
    # two values that share out all rows are one comparison with two signs
    count = sum(len(c) - (len(c) == 2 and bool((c[0] ^ c[1]).all())) for c in compared.values())
    level = 1 - (1 - LEVEL) / max(1, count)
    metric = at_threshold(metrics[task.primary], task)

    def line(value: str, mask: NDArray[np.bool_]) -> SliceValue:
        figures = estimates(task, metrics, subset(scored, mask))
        found = difference(metric, scored, mask, level) if comparable(mask, codes) else None
        if found is not None and not figures[task.primary].has_interval:  # as AUC of rows of one class
            found = Estimate.without_interval(found.value, found.n)
        return SliceValue(
            value=value,
            n=int(mask.sum()),
            metrics=figures,
            difference=found,
            worse=found is not None and found.high < 0,
        )

    def pooled(name: str) -> FewRows | None:
        kept = masks[name]
        rest = ~np.logical_or.reduce([np.zeros(len(scored), bool), *kept.values()])
        if not rest.any():
            return None
        values = {v for v, few in zip(columns[name], rest, strict=True) if few}
        figures = estimates(task, metrics, subset(scored, rest))
        return FewRows(values=len(values), n=int(rest.sum()), metrics=figures)

    def key(one: SliceValue) -> tuple[bool, bool, float]:
        figure = one.metrics[task.primary]  # one without an interval says nothing, as the AUC of rows of one class
        value = figure.value if metric.higher_is_better else -figure.value
        return not figure.has_interval, isnan(value), value

    return Slices(
        primary=task.primary,
        comparisons=count,
        columns=[
            Slice(column=name, values=sorted([line(*of) for of in masks[name].items()], key=key), few=pooled(name))
            for name in columns
        ],
    )


def masks_of(values: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return the rows [N] of each value with MIN_ROWS rows or more, by value in sorted order."""
    every = np.array(values, dtype=object)
    counts = Counter(values)
    return {value: every == value for value in sorted(counts) if counts[value] >= MIN_ROWS}


def comparable(mask: NDArray[np.bool_], codes: NDArray[np.int64]) -> bool:
    """Return whether these rows [N], and all others, are MIN_ROWS or more, and of MIN_GROUPS groups or more."""
    sides = mask, ~mask
    return all(side.sum() >= MIN_ROWS and len(np.unique(codes[side])) >= MIN_GROUPS for side in sides)


def subset(scored: Predictions, mask: NDArray[np.bool_]) -> Predictions:
    """Return some of the rows."""
    places = np.flatnonzero(mask).tolist()
    groups = None if scored.groups is None else tuple(scored.groups[i] for i in places)
    return Predictions(tuple(scored.ids[i] for i in places), scored.truth[mask], scored.scores[mask], groups)


def difference(metric: Metric, scored: Predictions, inside: NDArray[np.bool_], level: float) -> Estimate:
    """Return the metric of the rows ``inside`` [N] less that of all others, with its interval of ``level``.

    Positive is better for every metric. There is no interval where the metric itself has none.
    """
    if metric.proportion:
        return proportion_difference(cast(PerRow, metric), scored, inside, level)
    n, rows = len(scored), int(inside.sum())
    sign = 1.0 if metric.higher_is_better else -1.0
    own, others = (at_weights(metric, scored.truth[side], scored.scores[side]) for side in (inside, ~inside))

    def apart(weights: FloatArray) -> FloatArray:
        """Return the difference [R] at row weights [R, N]; NaN where a side has no weight."""
        a, b = weights[:, inside], weights[:, ~inside]
        drawn = a.any(axis=1) & b.any(axis=1)
        if drawn.all():
            return sign * (own(a) - others(b))
        found = np.full(len(weights), nan)
        found[drawn] = sign * (own(a[drawn]) - others(b[drawn]))
        return found

    value = float(apart(np.ones((1, n)))[0]) + 0.0  # no −0
    if isnan(value) or not getattr(metric, "interval", True):
        return Estimate.without_interval(value, rows)
    resamples = max(RANDOM_SUBSETS, min(RESAMPLES, MAX_DRAWS // n))
    what = f"bootstrap of {metric.title}"
    draws = resample(apart, n, groups=scored.groups, resamples=resamples, what=what)
    draws = draws[np.isfinite(draws)]
    codes = group_codes(scored.groups, n)
    units = min(len(np.unique(codes[side])) for side in (inside, ~inside))  # rows or groups of the smaller side
    error = float(np.std(draws)) * sqrt(units / (units - 1)) if len(draws) else 0.0
    error = max(error, 1 / (units + 2)) if metric.bounded else error
    if not error > 0:
        return Estimate.without_interval(value, rows)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, units - 1)) * error
    centre = value if hasattr(metric, "rows") else value - sign * size_effect(metric, scored, rows)
    return Estimate(value, min(value, centre) - half, max(value, centre) + half, rows)


def size_effect(metric: Metric, scored: Predictions, rows: int) -> float:
    """Return the mean of the metric of ``rows`` random rows less that of all others; 0 where it is undefined."""
    of, n = at_weights(metric, scored.truth, scored.scores), len(scored)
    order = np.random.default_rng(0).random((RANDOM_SUBSETS, n)).argsort(axis=1)
    weights = np.zeros((RANDOM_SUBSETS, n))
    np.put_along_axis(weights, order[:, :rows], 1.0, axis=1)
    apart = of(weights) - of(1 - weights)
    apart = apart[np.isfinite(apart)]
    return float(apart.mean()) if len(apart) else 0.0


def proportion_difference(metric: PerRow, scored: Predictions, inside: NDArray[np.bool_], level: float) -> Estimate:
    """Return the difference of two shares of rows, with an interval from their exact limits.

    Effective numbers of rows stand for groups. Groups with rows on both sides make the interval too wide.
    """
    right = metric.rows(scored.truth, scored.scores)
    sides = []
    for mask in (inside, ~inside):
        groups = None if scored.groups is None else [scored.groups[i] for i in np.flatnonzero(mask).tolist()]
        sides.append((float(right[mask].mean()), effective_rows(right[mask], groups, level)))
    (own, n), (others, m) = sides
    low, high = exact_difference(own, n, others, m, level)
    return Estimate(own - others, low, high, int(inside.sum()))
