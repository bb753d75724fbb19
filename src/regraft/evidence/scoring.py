"""Scores of a model on a split, metrics and paired gains with their intervals.

A proportion has Wilson's interval and a paired difference Newcombe's. Every other metric has a percentile
bootstrap (see :mod:`regraft.evidence.intervals`). All of them take groups of rows into account.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ..data.columns import groups_of
from ..data.types import Example
from ..errors import DataError, DivergedError, shorten
from ..metrics import Metric
from ..runs.estimates import Estimate
from ..tasks import Task
from .intervals import (
    LEVEL,
    Groups,
    at_weights,
    bootstrap,
    bootstrap_difference,
    effective_rows,
    newcombe_paired,
    quantile_of,
    wilson,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray
    from ..model.forward import Outputs


MAX_DRAWS = 50_000_000  # rows that one bootstrap draws in all; some seconds on one core

MIN_TAIL_DRAWS = 10  # resamples beyond each end of an interval


class PerRow(Metric, Protocol):
    """A metric that is a mean over rows: it has ``rows``."""

    def rows(self, truth: Any, scores: Any) -> FloatArray:
        """Return the values [N] whose mean is the metric, from truth [N] or [N, C] and scores [N, C]."""
        ...


@dataclass(frozen=True)
class Predictions:
    """Scores of a model for the rows of a split, with their truth."""

    ids: tuple[str, ...]
    truth: NDArray[Any]  # [N] class numbers, or [N, C]
    scores: NDArray[Any]  # [N, C] probabilities, or numbers in their own units
    groups: tuple[str | None, ...] | None = None  # [N]; a None among them is a row on its own

    def __len__(self) -> int:
        return len(self.ids)


def score(rows: Outputs, task: Task, examples: Sequence[Example]) -> Predictions:
    """Turn logits into scores with their truth. Raises DivergedError for scores that are not finite."""
    scores = task.scores(rows.values).numpy()
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise DivergedError(
            f"{len(bad)} of {len(scores)} rows have scores that are not finite "
            f"({shorten([rows.ids[i] for i in bad])}): the weights are damaged; fit again"
        )
    groups = tuple(groups_of(examples))
    return Predictions(
        rows.ids, task.truth(rows.targets).numpy(), scores, groups if any(g is not None for g in groups) else None
    )


@dataclass(frozen=True)
class _AtThreshold:
    """A multilabel metric at the task's own threshold."""

    title: str
    higher_is_better: bool
    proportion: bool
    bounded: bool
    interval: bool
    at_weights: Callable[[Any, Any], Callable[[FloatArray], FloatArray]]


def at_threshold(metric: Metric, task: Task) -> Metric:
    """Return the metric at the task's decision threshold, or the metric itself where either has none."""
    threshold = getattr(task, "threshold", None)
    if threshold is None or not getattr(metric, "thresholded", False):
        return metric
    bound = _AtThreshold(
        title=metric.title,
        higher_is_better=metric.higher_is_better,
        proportion=metric.proportion,
        bounded=metric.bounded,
        interval=getattr(metric, "interval", True),
        at_weights=partial(at_weights, metric, threshold=threshold),
    )
    return cast(Metric, bound)


def _reorder(scored: Predictions, ids: Sequence[str]) -> Predictions:
    """Return the rows in the order of ``ids``. Raises DataError where the rows are not the same."""
    wanted = tuple(ids)
    if scored.ids == wanted:
        return scored
    place = {id_: i for i, id_ in enumerate(scored.ids)}
    missing = [i for i in wanted if i not in place]
    extra = sorted(set(scored.ids) - set(wanted))
    if missing or extra or len(wanted) != len(scored.ids):
        raise DataError(
            f"the rows differ: {len(missing)} of {len(wanted)} are missing "
            f"({shorten(missing) or 'none'}) and {len(extra)} do not belong "
            f"({shorten(extra) or 'none'}); score both on the same rows"
        )
    order = [place[i] for i in wanted]
    groups = None if scored.groups is None else tuple(scored.groups[i] for i in order)
    return Predictions(wanted, scored.truth[order], scored.scores[order], groups)


def pair_rows(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    """Return ``a``, and ``b`` in the order of ``a``. Raises DataError where rows or their truth differ."""
    if not a.ids:
        raise DataError("there are no rows to compare")
    b = _reorder(b, a.ids)
    same = a.truth.shape == b.truth.shape and bool(np.allclose(a.truth, b.truth))
    if not same or a.scores.shape != b.scores.shape:
        raise DataError("the two runs have different labels for the same rows: compare like tasks")
    return a, b


def resample_count(n: int) -> int:
    """Return 10,000, or fewer for many rows: the error of the percentiles does not depend on n."""
    return max(2_000, min(10_000, MAX_DRAWS // n))


def estimates(task: Task, metrics: Mapping[str, Metric], scored: Predictions) -> dict[str, Estimate]:
    """Return each metric with its 95 % interval. Raises DataError where there are no rows."""
    n = len(scored)
    if n == 0:
        raise DataError("there are no rows to evaluate on")
    result = {}
    for name, plain in metrics.items():
        metric = at_threshold(plain, task)
        if metric.proportion:
            result[name] = proportion(cast(PerRow, metric).rows(scored.truth, scored.scores), scored.groups)
        else:
            result[name] = bootstrap(
                metric, scored.truth, scored.scores, groups=scored.groups, resamples=resample_count(n)
            )
    return result


def proportion(rows: FloatArray, groups: Groups | None) -> Estimate:
    """Return the mean of ``rows`` [N], each 0 or 1, with Wilson's interval; groups count as what they are worth."""
    p, worth = float(rows.mean()), effective_rows(rows, groups)
    return Estimate(p, *wilson(p * worth, worth), len(rows))


def gain(metric: Metric, a: Predictions, b: Predictions, level: float = LEVEL) -> Estimate:
    """Return how much better ``a`` is than ``b`` on the same rows, with its interval of ``level``, 95 % by default.

    Positive is better for every metric: a − b where higher is better, b − a where lower is. The interval is about
    these two models, not about the methods that made them. Raises DataError for different rows.
    """
    a, b = pair_rows(a, b)
    n = len(a)
    if metric.proportion:
        first = cast(PerRow, metric).rows(a.truth, a.scores)
        second = cast(PerRow, metric).rows(b.truth, b.scores)
        share = effective_rows(first - second, a.groups, level) / n
        both, neither = float(first @ second), float((1 - first) @ (1 - second))
        a_only, b_only = float(first @ (1 - second)), float((1 - first) @ second)
        counts = (a_only * share, b_only * share, both * share, neither * share)
        low, high = newcombe_paired(*counts, z=quantile_of(level))
        return Estimate((a_only - b_only) / n, low, high, n)
    better, worse = (a, b) if metric.higher_is_better else (b, a)
    resamples = max(resample_count(n), round(2 * MIN_TAIL_DRAWS / (1 - level)))
    return bootstrap_difference(
        metric, a.truth, better.scores, worse.scores, groups=a.groups, resamples=resamples, level=level
    )
