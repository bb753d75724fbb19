"""The last blocks of the backbone and the head train; the blocks below stay as they are.

Yosinski et al. 2014, https://arxiv.org/abs/1411.1792: lower layers are general, upper layers specific.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LastBlocks:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    blocks: int = 2  # backbone blocks that train, counted from the output

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError('blocks takes 1 or more; for none there is "head_only"')

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]:
        return frozenset(blocks[-1 - self.blocks :])
