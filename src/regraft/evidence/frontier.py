"""Frontier: the straight line in weight space from the starting point to the fitted model.

    θ(α) = (1 − α) · (θs, probe head) + α · (θt, fitted head),   α = 0, 0.1, … 1

Wortsman et al. 2022, 2109.01903, section 3 (WiSE-FT), whose zero-shot end is the probe here. A point
between the two often keeps more of the source and is no worse on the target. α is chosen on val, or
by folds where there is no val: the best primary metric, then the lower loss, then the smaller α. With
a floor, only points whose retention of the source task is at least that with 95 % confidence, on the
source's ``select`` rows, come into question.

Batch-norm statistics that are equal at both ends stay. Others are estimated anew at each point
between, on training rows without augmentation: a blend of variances is not the blend's variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import PlanError
from ..model.trainable import estimating_statistics
from ..model.weights import restore
from ..runs.estimates import Point, Retained
from .selection import improves

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from ..compute.device import Compute
    from ..data.batches import Batches
    from ..metrics import Metric
    from ..model.types import Target

    State = Mapping[str, Tensor]


ALPHAS = tuple(i / 10 for i in range(11))


def blend(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """θ(α) of two states of one model; both ends are exact, and so is what they share.

    Tensors of whole numbers (counters) come from ``end``, but at α = 0.
    """
    if alpha in (0, 1):
        return {n: t.clone() for n, t in (end if alpha else start).items()}
    return {n: torch.lerp(start[n], t, alpha) if t.is_floating_point() else t.clone() for n, t in end.items()}


def load_point(
    target: Target, start: State, end: State, alpha: float, train: Callable[[], Batches], compute: Compute
) -> None:
    """Load θ(α) into the target's model."""
    restore(target, blend(start, end, alpha))
    buffers = [n for n, _ in target.model.named_buffers() if n in end]
    moved = any(not torch.equal(start[n], end[n]) for n in buffers)
    if moved and 0 < alpha < 1:
        estimate_statistics(target.model, train(), compute)


def evaluate_points(
    move_to: Callable[[float], None],
    judge: Callable[[], dict[str, float]],
    source: Callable[[], Retained | None] = lambda: None,
) -> list[Point]:
    """Figures at every α, from 0 to 1; the model is left at α = 1."""
    points = []
    for alpha in ALPHAS:
        move_to(alpha)
        points.append(Point(alpha, judge(), source()))
    return points


def choose(points: Sequence[Point], metric: Metric, retain: float | None = None) -> Point:
    """The best on the primary metric; of equal ones the lower loss, then the smaller α.

    Raises PlanError, naming the best that can be had, where no point keeps the floor ``retain``.
    """
    ordered = sorted(points, key=lambda p: p.alpha)
    best, *others = above(ordered, retain) if retain is not None else ordered
    for point in others:
        if improves(point.figures, best.figures, metric):
            best = point
    return best


def above(points: Sequence[Point], retain: float) -> list[Point]:
    """The points that keep the floor. Raises PlanError where there is none."""
    kept = [(p, p.source.low) for p in points if p.source and p.source.low is not None]
    if not kept:
        raise PlanError(["fit.retain: no retention of the source is known for these points"])
    found = [p for p, low in kept if low >= retain]
    if not found:
        best, low = max(kept, key=lambda k: k[1])
        raise PlanError(
            [
                f"fit.retain: no point keeps {retain:g} of the source for sure; the best is {low:.3f}, at "
                f"α = {best.alpha:g}: lower the floor, or bring more source rows"
            ]
        )
    return found


def estimate_statistics(model: nn.Module, batches: Batches, compute: Compute) -> None:
    """Batch-norm statistics from one pass over ``batches``: the mean over batches of each one's."""
    with estimating_statistics(model), torch.no_grad():
        for _, inputs, _ in batches:
            model(compute.to_device(inputs))
