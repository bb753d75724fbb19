"""Freezing strategies, one file each; found by its name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from ..model.types import Target


class Freezing(Protocol):
    """Which blocks train in an epoch; pure, so that it can be printed and tested without torch."""

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]: ...


@runtime_checkable
class Adapting(Freezing, Protocol):
    """A freezing strategy that trains something beside the weights, and merges it at the end."""

    def adapted(self, target: Target, seed: int) -> AbstractContextManager[Target]:
        """What is fitted in place of the target, whose weights hold the result afterwards."""
        ...
