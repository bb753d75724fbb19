"""What fitting did to the source's knowledge.

With source data, the source metric through the source's own untouched head, before and after:

    forgetting   before − after (after − before where lower is better), paired on the same rows
    retention    (after − chance) ÷ (before − chance), where higher is better and before is above
                 chance; chance is the best answer that looks at no input (the rows' frequencies)

Without them forgetting cannot be measured, and what is shown are proxies: how far the fitted backbone
has moved from the source's on the target's inputs that were in no training:

    agreement    share of rows to which the source's own head gives the same class before and after
    divergence   mean over rows of KL(before ‖ after) of that head's probabilities, in nats
    cka          for a source without a head of classes, linear CKA of features (Kornblith, Norouzi,
                 Lee and Hinton 2019, 1905.00414, eq. 1 with a linear kernel): 1 for equal up to
                 rotation and scale

High agreement on target inputs does not prove that the source task is kept: they are other inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..metrics import Metric
from ..runs.estimates import Estimate
from ..tasks import Task
from .intervals import ONE_SIDED, at_weights, effective_rows, newcombe_paired, resampled, wilson
from .scoring import PerRow, Predictions, estimates, gain, paired, resamples
from .verdict import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..compute.arrays import FloatArray
    from ..model.types import Source
    from .intervals import Groups


MIN_ROWS_FOR_CLAIM = 200  # report rows below which a figure is shown without a claim

MIN_ROWS_PER_CLASS = 10  # report rows of a class below which nothing is said of it


@dataclass(frozen=True)
class Retained:
    """A backbone on source rows, against the source's own."""

    before: float  # the source metric
    after: float
    ratio: float | None  # None where it is not defined
    low: float | None  # of the ratio: it is at least this, with 95 % confidence (one-sided)


def chance(metric: Metric, rows: Predictions) -> float:
    """The metric of the same answer for every row: the frequencies (or the mean) of the rows."""
    truth, outputs = rows.truth, rows.scores.shape[1]
    classes = truth.ndim == 1
    constant = np.bincount(truth, minlength=outputs) / len(truth) if classes else truth.mean(0)
    scores = np.broadcast_to(constant.astype(np.float64), (len(rows), outputs))
    return float(metric.value(truth, scores, np.ones((1, len(rows))))[0])


def retained(metric: Metric, before: Predictions, after: Predictions) -> Retained:
    """Retention and its one-sided lower bound.

    The bound is that of after − before, a score interval for proportions and a bootstrap for other
    metrics, over before − chance as it was found: where little is forgotten, how sure ``before`` is
    hardly moves the ratio. No discordant rows is not certainty.
    """
    before, after = paired(before, after)
    ones = np.ones((1, len(before)))
    was = float(metric.value(before.truth, before.scores, ones)[0])
    now = float(metric.value(after.truth, after.scores, ones)[0])
    room = was - chance(metric, before)
    if not metric.higher_is_better or room <= 0:
        return Retained(was, now, None, None)
    return Retained(was, now, 1 + (now - was) / room, 1 + _least(metric, before, after) / room)


def _least(metric: Metric, before: Predictions, after: Predictions) -> float:
    """The lower end of after − before, one-sided 95 %."""
    if not metric.proportion:
        now = at_weights(metric, after.truth, after.scores)
        was = at_weights(metric, before.truth, before.scores)

        def change(weights: FloatArray) -> FloatArray:
            return now(weights) - was(weights)

        n = len(before)
        return float(np.quantile(resampled(change, n, groups=before.groups, resamples=resamples(n)), 0.05))
    a = cast(PerRow, metric).rows(after.truth, after.scores)
    b = cast(PerRow, metric).rows(before.truth, before.scores)
    share = effective_rows(a - b, before.groups) / len(before)
    gained, lost, both, neither = (float(c) * share for c in (a @ (1 - b), b @ (1 - a), a @ b, (1 - a) @ (1 - b)))
    return newcombe_paired(gained, lost, both, neither, ONE_SIDED)[0]


def measured(
    metric: Metric, task: Task, before: Predictions, after: Sequence[Predictions], ends: Sequence[Predictions]
) -> dict[str, Any]:
    """``retention`` of result.json from report rows: the source, and a fit a seed at its chosen point
    and at α = 1 (``ends``).

    ``forgetting`` is of the first, the model that is saved; over seeds it carries their variance too.
    """
    first = retained(metric, before, after[0])
    found: dict[str, Any] = {
        "kind": "source data",
        "metric": task.primary,
        "before": estimates(task, {task.primary: metric}, before)[task.primary],
        "after": estimates(task, {task.primary: metric}, after[0])[task.primary],
        "forgetting": gain(metric, before, after[0]),
        "forgetting over seeds": decide(metric, [(before, a) for a in after]).gain if len(after) > 1 else None,
        "chance": chance(metric, before),
        "ratio": first.ratio,
        "low": first.low,
        "claim": len(before) >= MIN_ROWS_FOR_CLAIM,
        "claim from": MIN_ROWS_FOR_CLAIM,
        "seeds": [{"after": r.after, "ratio": r.ratio} for r in (retained(metric, before, a) for a in after)],
        "most forgotten": by_class(task, before, after[0]),
    }
    if any(a is not e for a, e in zip(after, ends, strict=True)):
        pairs = list(zip(after, ends, strict=True))
        over_seeds = decide(metric, pairs).gain
        found["at alpha 1"] = [retained(metric, before, e).after for e in ends]
        found["gain over alpha 1"] = over_seeds or gain(metric, *pairs[0])
    return found


def by_class(task: Task, before: Predictions, after: Predictions) -> list[dict[str, Any]]:
    """Accuracy lost by class, the greatest loss first; classes of at least EACH report rows."""
    if not task.has_classes:
        return []
    found: list[dict[str, Any]] = []
    of = np.bincount(before.truth, minlength=task.outputs)  # rows
    right = [np.bincount(s.truth[s.scores.argmax(1) == s.truth], minlength=task.outputs) for s in (before, after)]
    for number, name in enumerate(task.classes):
        rows = int(of[number])
        if rows >= MIN_ROWS_PER_CLASS:
            was, now = (int(r[number]) / rows for r in right)
            found.append({"class": name, "rows": rows, "before": was, "after": now})
    found.sort(key=lambda c: (float(c["after"]) - float(c["before"]), c["class"]))
    return [c for c in found if c["after"] < c["before"]]


def proxies(source: Source, before: Tensor, after: Tensor, groups: Groups | None = None) -> dict[str, Any]:
    """``retention`` of result.json, from features [N, D] of the source and of the fitted model."""
    if source.head is None or not source.has_classes:
        return {"kind": "features on target inputs", "cka": linear_cka(before, after)}
    head = source.head.cpu()
    with torch.no_grad():
        p, q = head(before).double().log_softmax(1), head(after).double().log_softmax(1)  # [N, C]
    same = (p.argmax(1) == q.argmax(1)).double().numpy()
    apart = (p.exp() * (p - q)).sum(1).clamp_min(0).numpy()  # [N]
    n, worth = len(same), effective_rows(same, groups)
    share = float(same.mean())
    return {
        "kind": "agreement on target inputs",
        "agreement": Estimate(share, *wilson(share * worth, worth), n),
        "divergence": mean_of(apart, groups),
    }


def mean_of(rows: FloatArray, groups: Groups | None) -> Estimate:
    """A mean over rows [N] with its percentile bootstrap interval."""
    n = len(rows)

    def of(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ rows / weights.sum(1))

    low, high = np.quantile(resampled(of, n, groups=groups, resamples=resamples(n)), [0.025, 0.975])
    return Estimate(float(rows.mean()), float(low), float(high), n)


def linear_cka(a: Tensor, b: Tensor) -> float | None:
    """Of features [N, D] and [N, E] of the same rows, in [0, 1]; None where one does not vary."""
    x, y = (t.double() - t.double().mean(0) for t in (a, b))
    scale = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return float((y.T @ x).square().sum() / scale) if scale > 0 else None
