"""Records that the training loop takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.batches import Batches


@dataclass(frozen=True)
class Epoch:
    """One line of history.jsonl."""

    epoch: int  # 0: the starting point
    step: int
    terms: dict[str, float]  # each term's mean over the epoch's steps
    rates: dict[str, float]  # of the last step, trainable blocks only
    val: dict[str, float]  # the primary metric and "loss"; empty without val
    best: bool
    source: dict[str, float] = field(default_factory=dict)  # of the source task, where watched


@dataclass(frozen=True)
class Fit:
    best_epoch: int
    epochs: int  # that were run
    steps: int
    best: dict[str, float]  # val figures of the best epoch
    start: dict[str, float]  # val figures of the starting point
    stopped: str  # why it ended


@dataclass(frozen=True)
class PhaseData:
    """The rows of a phase. With a cut of k they come as the output of the first k blocks, which are
    frozen; without one as the network's inputs."""

    train: Batches
    val: Batches | None
    cut: int = 0
    val_cut: int = 0


@dataclass
class Progress:
    """The plain numbers."""

    epoch: int = 1  # that is being trained
    batches: int = 0  # of it that are done; 0 between two epochs
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch's terms
    trainable: list[str] = field(default_factory=list)  # blocks
    thawed: dict[str, int] = field(default_factory=dict)  # block → the step at which it thawed
    rates: dict[str, float] = field(default_factory=dict)  # block → that of the last step
    drawn: dict[str, int] = field(default_factory=dict)  # penalty → batches of its own so far
    start: dict[str, float] = field(default_factory=dict)  # figures of the starting point
    best: dict[str, float] = field(default_factory=dict)  # and of the best epoch so far
    best_epoch: int = 0


@dataclass(frozen=True)
class Saved:
    """What an earlier process left."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]


# Told (the plain numbers, what gives the tensors): see regraft.training.state
SaveCheckpoint = Callable[[Progress, Callable[[], "dict[str, Tensor]"]], None]
