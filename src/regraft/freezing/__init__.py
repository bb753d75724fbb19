"""Freezing strategies, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from ..model.types import Target


class Freezing(Protocol):
    """A choice of the blocks that train in an epoch: a pure function, printed and tested without torch."""

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]:
        """Return the names of the blocks that train in ``epoch``, from 1; ``blocks`` run from input to head."""
        ...


@runtime_checkable
class Adapting(Freezing, Protocol):
    """A freezing strategy that trains tensors beside the weights and merges them at the end."""

    def adapted(self, target: Target, seed: int) -> AbstractContextManager[Target]:
        """Yield the model to fit in place of the target. Afterwards the target's weights hold the result."""
        ...
