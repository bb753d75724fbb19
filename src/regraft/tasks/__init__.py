"""What is learnt, one file a task; found by its name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray


# ---------------------------------------------------------------- tasks


class Task(Protocol):
    """What is learnt: targets, loss, scores. Built from the training labels, saved with the run."""

    name: str
    classes: tuple[str, ...]  # names of classes, labels or numbers, in output order
    primary: str  # the metric that choices are made by
    metrics: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """C"""
        ...

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's label cells, in words; None where nothing is."""
        ...

    def encode(self, cells: Sequence[tuple[str, ...]]) -> Tensor:
        """Label cells → targets: [N] int64, or [N, C] float32."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Per-sample loss [B] of logits [B, C]; targets as encoded, or mixed: [B, C] float."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Logits [B, C] → [B, C]: probabilities, or numbers in their own units."""
        ...

    def truth(self, targets: Tensor) -> Tensor:
        """Targets → what scores are compared with: as encoded, or numbers in their own units."""
        ...

    def label(self, scores: FloatArray) -> str:
        """One row's scores [C] as the answer: a class, labels joined by ";", or numbers."""
        ...

    def constant(self, targets: Tensor) -> Tensor:
        """Scores [C] of the trivial control: the training frequencies, or the training mean."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain JSON from which the task file's ``restore`` makes this task again."""
        ...
