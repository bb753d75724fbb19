"""Epochs in which a freezing strategy changes what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..freezing import Freezing


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
