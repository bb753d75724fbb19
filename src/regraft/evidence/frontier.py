"""Frontier: the straight line in weight space from the starting point to the fitted model.

    θ(α) = (1 − α) · (θs, probe head) + α · (θt, fitted head),   α = 0, 0.1, … 1

Wortsman et al. 2022, 2109.01903, section 3 (WiSE-FT); the probe stands for their zero-shot end. A point
between the ends often keeps more of the source and is no worse on the target. α is chosen on val, or by
folds without val: the best primary metric, then the lower loss, then the smaller α. A floor is tested from
α = 0 upwards, on the source's ``select`` rows. It leaves the points before the first whose retention of the
source task is not at least the floor with 95 % confidence.

Batch-norm statistics that are equal at both ends stay. Others are estimated anew at each point between, on
training rows without augmentation, because a blend of variances is not the blend's variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
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
    """Return θ(α) of two states of one model. Both ends are exact, and so are tensors that are equal at both.

    Tensors of whole numbers (counters) come from ``end``, except at α = 0.
    """
    if alpha in (0, 1):
        return {n: t.clone() for n, t in (end if alpha else start).items()}
    return {n: torch.lerp(start[n], t, alpha) if t.is_floating_point() else t.clone() for n, t in end.items()}


def load_point(
    target: Target, start: State, end: State, alpha: float, train: Callable[[], Batches], compute: Compute
) -> None:
    """Load θ(α) into the target's model; ``train`` makes the batches for batch-norm statistics."""
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
    """Measure the figures at every α, from 0 to 1, and leave the model at α = 1."""
    points = []
    for alpha in ALPHAS:
        move_to(alpha)
        points.append(Point(alpha, judge(), source()))
    return points


def choose(points: Sequence[Point], metric: Metric, retain: float | None = None) -> Point:
    """Choose the point that is best on the primary metric; of equal points the lower loss, then the smaller α.

    Raises PlanError, naming the best point, if none keeps the floor ``retain``.
    """
    ordered = sorted(points, key=lambda p: p.alpha)
    best, *others = above_floor(ordered, retain) if retain is not None else ordered
    for point in others:
        if improves(point.figures, best.figures, metric):
            best = point
    return best


def above_floor(points: Sequence[Point], retain: float) -> list[Point]:
    """Return the points that keep the floor: from α = 0 up to the first that fails. Raises PlanError if there is none.

    The unchanged source keeps all of itself, whatever the rows can show. The order is fixed before the rows are seen,
    so that all the points together have the level of one test (fixed sequence: Maurer, Hothorn and Lehmacher 1995).
    Eleven tests at that level would let some point pass by chance.
    """
    ordered = sorted(points, key=lambda p: p.alpha)
    bounds = [(p, p.source.low) for p in ordered if p.source and p.source.low is not None]
    if not bounds:
        raise PlanError("fit.retain: no retention of the source is known for these points")
    above = [p for p, _ in takewhile(lambda bound: is_source(bound[0]) or bound[1] >= retain, bounds)]
    if not above:
        first, low = bounds[0]
        raise PlanError(
            f"fit.retain: no point keeps {retain:g} of the source with 95 % confidence; already "
            f"α = {first.alpha:g} keeps only {low:.3f}: lower the floor, or bring more source rows"
        )
    return above


def check_floor(unchanged: Retained, retain: float) -> None:
    """Raise PlanError for a floor that no fine-tuned point can pass: these rows do not show it of unchanged weights."""
    if unchanged.low is not None and unchanged.low < retain:
        raise PlanError(
            f"fit.retain: no fine-tuned point can be shown to keep {retain:g} of the source: on these source rows even "
            f"unchanged weights show only {unchanged.low:.3f}; lower the floor, or bring more source rows"
        )


def is_source(point: Point) -> bool:
    """Return whether a point has the source's own weights and, on these rows, all of its metric."""
    return point.alpha == 0 and point.source is not None and point.source.ratio == 1


def estimate_statistics(model: nn.Module, batches: Batches, compute: Compute) -> None:
    """Estimate batch-norm statistics in one pass, as the mean over batches of each batch's statistics."""
    with estimating_statistics(model), torch.no_grad():
        for _, inputs, _ in batches:
            model(compute.to_device(inputs))
