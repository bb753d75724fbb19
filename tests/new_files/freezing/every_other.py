"""Train the head and every other block below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EveryOther:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]:
        """Return the blocks that train in an epoch."""
        return frozenset(blocks[::-1][::2])
