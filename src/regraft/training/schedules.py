"""Schedules: learning rates by block and step, and the blocks that train by epoch.

    rate(block k of K, counted from the input) = lr · layer_decay^(K−1−k),   rate(head) = head_lr
    at step s of T: rate · warm-up(s) · schedule(progress),   progress in [0, 1]

Layer decay: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, 3.2 (their factor is 1/2.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.types import match_blocks

if TYPE_CHECKING:
    from ..freezing import Freezing

Schedule = Callable[[float], float]  # progress in [0, 1] → factor

SCHEDULES: Mapping[str, Schedule] = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
}


def block_rates(
    blocks: Sequence[str],
    *,
    lr: float,
    head_lr: float,
    layer_decay: float = 1.0,
    overrides: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return each block's rate, from input to output; the last block is the head.

    Raises PlanError if an override's pattern matches no block.
    """
    *backbone, head = blocks
    depth = len(backbone)
    rates = {name: lr * layer_decay ** (depth - 1 - k) for k, name in enumerate(backbone)}
    rates[head] = head_lr
    for pattern, rate in (overrides or {}).items():
        rates |= dict.fromkeys(match_blocks(pattern, blocks), rate)
    return rates


@dataclass(frozen=True)
class RateSchedule:
    """The factor on every block's rate, by step."""

    name: str  # of SCHEDULES
    steps: int  # of the whole fit
    warmup: float = 0.0  # share of the steps in which rates rise

    def factor(self, step: int, unfrozen: int = 0) -> float:
        """Return the factor at ``step``, from 0, for a block that began to train at step ``unfrozen``.

        The block's own warm-up starts there. The schedule runs on for all blocks alike from the end of the
        first warm-up.
        """
        warm = int(self.warmup * self.steps)
        rising = min(1.0, (step - unfrozen + 1) / warm) if warm else 1.0
        progress = max(0.0, (step - warm) / max(1, self.steps - warm))
        return rising * SCHEDULES[self.name](min(1.0, progress))


# ---------------------------------------------------------------- epochs in which other blocks train


def lowest_trainable(blocks: list[str], trainable: frozenset[str]) -> int:
    """Return the position of the first block that trains: the number of frozen blocks below it."""
    return next((i for i, name in enumerate(blocks) if name in trainable), 0)


def frozen_blocks(freezing: Freezing, blocks: list[str], epoch: int) -> int:
    """Return the number of leading blocks that are frozen in an epoch; 0 before the first one."""
    return lowest_trainable(blocks, freezing(blocks, epoch)) if epoch else 0


def last_unfreeze_epoch(freezing: Freezing, blocks: list[str], epochs: int) -> int:
    """Return the last epoch in which a block is unfrozen. Patience counts from there, because epochs without
    a gain before say nothing about that block."""
    wanted = [frozenset[str](), *(freezing(blocks, e) for e in range(1, epochs + 1))]
    return max((e for e in range(1, epochs + 1) if wanted[e] - wanted[e - 1]), default=0)
