"""The numbers of a step, read in one copy from the device, and the error if one is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch

from ..compute import distributed
from ..errors import DivergedError, shorten

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StepTerms:
    """Loss terms of one micro-batch, or of a slice of one. They stay on the device to avoid a host sync."""

    ids: tuple[str, ...]
    names: tuple[str, ...]  # of the terms
    terms: Tensor  # [T]


@dataclass(frozen=True)
class StepPlace:
    """The place of a step in the fit, and its rates, for messages."""

    step: int
    epoch: int
    optimizer: torch.optim.Optimizer

    def diverged(self, name: str, ids: Sequence[str]) -> DivergedError:
        """Return the error of a number that is not finite: "loss" or "gradient"."""
        rates = {g["block"]: g["lr"] for g in self.optimizer.param_groups}
        return DivergedError(
            f"the {name} is not finite at step {self.step} (epoch {self.epoch}; rows {shorten(list(ids))}; rates "
            f"{min(rates.values()):.2g} to {max(rates.values()):.2g}): lower fit.lr and fit.head_lr, or "
            f"look at these rows"
        )


def read_finite(parts: Sequence[StepTerms], norm: Tensor | None, place: StepPlace) -> tuple[dict[str, float], float]:
    """Return each term's sum over the parts, and the gradient's norm (0 without one).

    Raises DivergedError if a loss, on any rank, or the norm is not finite.
    """
    losses = [part.terms.sum(0, keepdim=True) for part in parts]
    flat = torch.cat([p.terms for p in parts] + losses + ([] if norm is None else [norm.view(1)]))
    numbers = iter(flat.tolist())  # the one synchronisation with the device
    sums: dict[str, float] = {}
    for part in parts:
        for name in part.names:
            sums[name] = sums.get(name, 0.0) + next(numbers)
    diverged = [part for part in parts if not isfinite(next(numbers))]
    if distributed.any_rank(bool(diverged)):
        raise place.diverged("loss", distributed.gather_objects([i for part in diverged for i in part.ids]))
    length: float = next(numbers, 0.0)
    if not isfinite(length):
        raise place.diverged("gradient", parts[0].ids)
    return sums, length
