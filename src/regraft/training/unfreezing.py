"""Epochs in which a freezing strategy changes what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..freezing import Freezing


def lowest_trainable(blocks: list[str], trainable: frozenset[str]) -> int:
    """The position of the first block that trains: how many lie frozen below it."""
    return next((i for i, name in enumerate(blocks) if name in trainable), 0)


def last_unfreeze_epoch(freezing: Freezing, blocks: list[str], epochs: int) -> int:
    """The last epoch in which a block thaws: patience counts from there, not from a thaw before."""
    wanted = [frozenset[str](), *(freezing(blocks, e) for e in range(1, epochs + 1))]
    return max((e for e in range(1, epochs + 1) if wanted[e] - wanted[e - 1]), default=0)
