"""Frontier: the straight line in weight space from the starting point to the fitted model.

    θ(α) = (1 − α) · (θs, probe head) + α · (θt, fitted head),   α = 0, 0.1, … 1

Wortsman et al. 2022, 2109.01903, section 3 (WiSE-FT), whose zero-shot end is the probe here. A point
between the two often keeps more of the source and is no worse on the target. α is chosen on val, or
by folds where there is no val: the best primary metric, then the lower loss, then the smaller α.

Batch-norm statistics that are equal at both ends stay. Others are estimated anew at each point
between, on training rows without augmentation: a blend of variances is not the blend's variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .features import on
from .freeze import estimating_statistics
from .loop import improves, restore

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .batches import Batches
    from .types import Metric, Target

    State = Mapping[str, Tensor]

ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Point:
    """One θ(α) and its figures: the primary metric and "loss" on val, or over the folds."""

    alpha: float
    figures: dict[str, float]


def blend(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """θ(α) of two states of one model; both ends are exact, and so is what they share.

    Tensors of whole numbers (counters) come from ``end``, but at α = 0.
    """
    if alpha in (0, 1):
        return {n: t.clone() for n, t in (end if alpha else start).items()}
    return {
        n: torch.lerp(start[n], t, alpha) if t.is_floating_point() else t.clone()
        for n, t in end.items()
    }


def move(
    target: Target,
    start: State,
    end: State,
    alpha: float,
    train: Callable[[], Batches],
    device: torch.device,
    layout: str,
) -> None:
    """Load θ(α) into the target's model."""
    restore(target, blend(start, end, alpha))
    buffers = [n for n, _ in target.model.named_buffers() if n in end]
    moved = any(not torch.equal(start[n], end[n]) for n in buffers)
    if moved and 0 < alpha < 1:
        estimate_statistics(target.model, train(), device, layout)


def walk(move_to: Callable[[float], None], judge: Callable[[], dict[str, float]]) -> list[Point]:
    """Figures at every α, from 0 to 1; the model is left at α = 1."""
    points = []
    for alpha in ALPHAS:
        move_to(alpha)
        points.append(Point(alpha, judge()))
    return points


def choose(points: Sequence[Point], metric: Metric) -> Point:
    """The best on the primary metric; of equal ones the lower loss, then the smaller α."""
    best, *others = sorted(points, key=lambda p: p.alpha)
    for point in others:
        if improves(point.figures, best.figures, metric):
            best = point
    return best


def estimate_statistics(
    model: nn.Module, batches: Batches, device: torch.device, layout: str
) -> None:
    """Batch-norm statistics from one pass over ``batches``: the mean over batches of each one's."""
    with estimating_statistics(model), torch.no_grad():
        for _, inputs, _ in batches:
            model(on(inputs, device, layout))
