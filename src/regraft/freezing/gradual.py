"""Blocks unfreeze one after the other, from the output to the input.

Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, 3.3: the head trains alone first, then one
more block unfreezes each epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gradual:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    blocks_per_stage: int = 1  # blocks that unfreeze together
    epochs_per_stage: int = 1  # epochs from one stage to the next

    def __post_init__(self) -> None:
        if self.blocks_per_stage < 1 or self.epochs_per_stage < 1:
            raise ValueError("blocks_per_stage and epochs_per_stage take 1 or more")

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]:
        stages = (epoch - 1) // self.epochs_per_stage
        return frozenset(blocks[max(0, len(blocks) - 1 - stages * self.blocks_per_stage) :])
