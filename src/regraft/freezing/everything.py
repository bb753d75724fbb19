"""Every block trains from the first epoch on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Everything:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]:
        return frozenset(blocks)
