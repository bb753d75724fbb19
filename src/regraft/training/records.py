"""Records that the training loop takes and returns, and the objects that watch and save a fit."""

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
class FitResult:
    """The end of a fit; the model holds the best epoch's weights."""

    best_epoch: int  # 0: the starting point
    epochs: int  # that ran
    steps: int
    best: dict[str, float]  # val figures of the best epoch
    start: dict[str, float]  # val figures of the starting point
    stopped: str  # why it ended


@dataclass(frozen=True)
class PhaseData:
    """The rows of a phase. With a cut of k they are the output of the first k blocks, which are frozen;
    without a cut they are the network's inputs."""

    train: Batches
    val: Batches | None
    cut: int = 0
    val_cut: int = 0


@dataclass(frozen=True)
class FitData:
    """The rows of a fit. ``phases`` may yield cached outputs of frozen blocks in their place."""

    train: Batches
    val: Batches | None = None
    phases: Callable[[int], PhaseData] | None = None  # frozen leading blocks → the rows while they are frozen

    def phase(self, frozen: int) -> PhaseData:
        """Return the rows for as long as the first ``frozen`` blocks are frozen."""
        return self.phases(frozen) if self.phases else PhaseData(self.train, self.val)


@dataclass
class Progress:
    """The plain numbers of a fit under way."""

    epoch: int = 1  # the epoch under way
    batches: int = 0  # micro-batches of the epoch that are done; 0 between two epochs
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch's terms
    trainable: list[str] = field(default_factory=list)  # blocks
    thawed: dict[str, int] = field(default_factory=dict)  # block → the step at which it began to train
    rates: dict[str, float] = field(default_factory=dict)  # block → rate of the last step
    drawn: dict[str, int] = field(default_factory=dict)  # penalty → batches of its own so far
    start: dict[str, float] = field(default_factory=dict)  # figures of the starting point
    best: dict[str, float] = field(default_factory=dict)  # figures of the best epoch so far
    best_epoch: int = 0


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]


# ---------------------------------------------------------------- watching and saving


class Monitor:
    """An observer of a fit, which does nothing here. A subclass defines the methods that it needs."""

    def epoch(self, epoch: Epoch) -> None:
        """Take the figures of an epoch; epoch 0 is the starting point."""
        return

    def step(self, progress: Progress) -> None:
        """Take the progress after a step, and after an epoch's end, where ``batches`` is 0."""
        return

    def source_metrics(self) -> dict[str, float]:
        """Measure the source task with the model as it is. Called after every epoch."""
        return {}

    def note(self, line: str) -> None:
        """Take a sentence for the user."""
        return


class Checkpoints:
    """The checkpoints of one fit, which are never saved here. A subclass saves them."""

    def load(self) -> Saved | None:
        """Return the checkpoint that the fit goes on from; None: it starts anew."""
        return None

    def save(self, progress: Progress, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """Save the fit, if it is time to. Called after every step and every epoch's end."""
        return


SILENT, NONE = Monitor(), Checkpoints()
