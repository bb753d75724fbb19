"""Retention: what fine-tuning did to the source's knowledge.

With source data: the source metric before and after, through the source's own untouched head:

    forgetting   before − after (after − before where lower is better), paired on the same rows
    retention    (after − chance) ÷ (before − chance), where higher is better and before is above
                 chance; chance is the best answer that looks at no input (the rows' frequencies)

Without source data forgetting cannot be measured. Proxies then show how far the fitted backbone has moved
from the source's, on target inputs that were in no training:

    agreement    share of rows to which the source's own head gives the same class before and after
    divergence   mean over rows of KL(before ‖ after) of that head's probabilities, in nats
    cka          for a source without a head of classes, linear CKA of features (Kornblith, Norouzi,
                 Lee and Hinton 2019, 1905.00414, eq. 1 with a linear kernel): 1 for equal up to
                 rotation and scale

High agreement on target inputs does not prove that the source task is kept, because its inputs differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..metrics import Metric
from ..runs.estimates import Estimate, Retained
from ..runs.result_parts import Agreement, FeatureSimilarity, Forgotten, SeedRetention, SourceRetention
from ..tasks import Task
from .intervals import Z_ONE_SIDED, at_weights, effective_rows, newcombe_paired, resample, value_of, wilson
from .scoring import PerRow, Predictions, estimates, gain, pair_rows, resample_count
from .verdict import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..compute.arrays import FloatArray
    from ..model.types import Source
    from .intervals import Groups


MIN_ROWS_FOR_CLAIM = 200  # report rows; with fewer the figure is shown without a claim

MIN_ROWS_PER_CLASS = 10  # report rows of a class; a class with fewer is not listed


def chance_level(metric: Metric, rows: Predictions) -> float:
    """Return the metric of one answer for every row: the rows' class frequencies, or their mean."""
    truth, outputs = rows.truth, rows.scores.shape[1]
    classes = truth.ndim == 1
    constant = np.bincount(truth, minlength=outputs) / len(truth) if classes else truth.mean(0)
    scores = np.broadcast_to(constant.astype(np.float64), (len(rows), outputs))
    return value_of(metric, truth, scores)


def retention_of(metric: Metric, before: Predictions, after: Predictions) -> Retained:
    """Return retention and its one-sided lower bound.

    The bound is that of after − before, divided by the observed before − chance. Proportions have a score
    interval, other metrics a bootstrap. The error of ``before`` is left out, because it hardly changes the
    ratio where little is forgotten. Without discordant rows the bound is still below 1.
    """
    before, after = pair_rows(before, after)
    old, new = (value_of(metric, rows.truth, rows.scores) for rows in (before, after))
    above_chance = old - chance_level(metric, before)
    if not metric.higher_is_better or above_chance <= 0:
        return Retained(old, new, None, None)
    return Retained(old, new, 1 + (new - old) / above_chance, 1 + _lower_bound(metric, before, after) / above_chance)


def _lower_bound(metric: Metric, before: Predictions, after: Predictions) -> float:
    """Return the lower end of after − before, one-sided 95 %."""
    if not metric.proportion:
        now = at_weights(metric, after.truth, after.scores)
        was = at_weights(metric, before.truth, before.scores)

        def change(weights: FloatArray) -> FloatArray:
            return now(weights) - was(weights)

        n = len(before)
        return float(np.quantile(resample(change, n, groups=before.groups, resamples=resample_count(n)), 0.05))
    a = cast(PerRow, metric).rows(after.truth, after.scores)
    b = cast(PerRow, metric).rows(before.truth, before.scores)
    share = effective_rows(a - b, before.groups) / len(before)
    gained, lost, both, neither = (float(c) * share for c in (a @ (1 - b), b @ (1 - a), a @ b, (1 - a) @ (1 - b)))
    return newcombe_paired(gained, lost, both, neither, Z_ONE_SIDED)[0]


def measure_retention(
    metric: Metric,
    task: Task,
    before: Predictions,
    after: Sequence[Predictions],
    ends: Sequence[Predictions],
    opened: int | None = None,
) -> SourceRetention:
    """Return the retention on report rows.

    ``before`` is the source; ``after`` has a fit for each seed at its chosen point and ``ends`` the same fits at α =
    1. ``forgetting`` is that of the first seed, whose model is saved; ``over_seeds`` includes the variance of the
    seeds. ``opened`` counts how often the report rows were opened.
    """
    first = retention_of(metric, before, after[0])
    at_end: list[float] | None = None
    gained: Estimate | None = None
    if any(a is not e for a, e in zip(after, ends, strict=True)):
        pairs = list(zip(after, ends, strict=True))
        at_end = [retention_of(metric, before, e).after for e in ends]
        gained = decide(metric, pairs, paired=True).gain or gain(metric, *pairs[0])
    by_seed = [retention_of(metric, before, a) for a in after]
    return SourceRetention(
        metric=task.primary,
        before=estimates(task, {task.primary: metric}, before)[task.primary],
        after=estimates(task, {task.primary: metric}, after[0])[task.primary],
        forgetting=gain(metric, before, after[0]),
        over_seeds=decide(metric, [(before, a) for a in after], paired=True).gain if len(after) > 1 else None,
        chance=chance_level(metric, before),
        ratio=first.ratio,
        low=first.low,
        claim=len(before) >= MIN_ROWS_FOR_CLAIM,
        claim_from=MIN_ROWS_FOR_CLAIM,
        seeds=[SeedRetention(after=r.after, ratio=r.ratio) for r in by_seed],
        most_forgotten=forgetting_by_class(task, before, after[0]),
        at_alpha_1=at_end,
        gain_over_alpha_1=gained,
        opened=opened,
    )


def forgetting_by_class(task: Task, before: Predictions, after: Predictions) -> list[Forgotten]:
    """Return the accuracy lost in each class with at least MIN_ROWS_PER_CLASS report rows, the greatest loss first."""
    if not task.has_classes:
        return []
    classes: list[Forgotten] = []
    counts = np.bincount(before.truth, minlength=task.outputs)  # [C]
    right = [np.bincount(s.truth[s.scores.argmax(1) == s.truth], minlength=task.outputs) for s in (before, after)]
    for number, name in enumerate(task.classes):
        rows = int(counts[number])
        if rows >= MIN_ROWS_PER_CLASS:
            old, new = (int(r[number]) / rows for r in right)
            classes.append(Forgotten(name=name, rows=rows, before=old, after=new))
    classes.sort(key=lambda c: (c.after - c.before, c.name))
    return [c for c in classes if c.after < c.before]


def measure_proxies(
    source: Source, before: Tensor, after: Tensor, groups: Groups | None = None
) -> Agreement | FeatureSimilarity:
    """Return the retention by proxy, from features [N, D] of the source and of the fitted model."""
    if source.head is None or not source.has_classes:
        return FeatureSimilarity(cka=linear_cka(before, after))
    head = source.head.cpu()
    with torch.no_grad():
        p, q = head(before).double().log_softmax(1), head(after).double().log_softmax(1)  # [N, C]
    same = (p.argmax(1) == q.argmax(1)).double().numpy()
    apart = (p.exp() * (p - q)).sum(1).clamp_min(0).numpy()  # [N]
    n, worth = len(same), effective_rows(same, groups)
    share = float(same.mean())
    share_of_rows = Estimate(share, *wilson(share * worth, worth), n)
    return Agreement(agreement=share_of_rows, divergence=mean_estimate(apart, groups))


def mean_estimate(rows: FloatArray, groups: Groups | None) -> Estimate:
    """Return the mean over rows [N] with its percentile bootstrap interval."""
    n = len(rows)

    def of(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ rows / weights.sum(1))

    low, high = np.quantile(resample(of, n, groups=groups, resamples=resample_count(n)), [0.025, 0.975])
    return Estimate(float(rows.mean()), float(low), float(high), n)


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Return linear CKA, in [0, 1], of features [N, D] and [N, E] of the same rows; NaN where one is constant."""
    x, y = (t.double() - t.double().mean(0) for t in (a, b))
    scale = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return float((y.T @ x).square().sum() / scale) if scale > 0 else float("nan")
