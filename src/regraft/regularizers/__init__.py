"""Penalties, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from ..model.types import Target
from ..tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import Inputs


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Batch:
    """A micro-batch as penalties see it."""

    step: int
    ids: tuple[str, ...]
    params: Mapping[str, Tensor]  # trainable parameters by name in the target model
    inputs: Inputs
    features: Tensor  # [B, D]
    logits: Tensor  # [B, C]
    targets: Tensor  # [B] or [B, C]
    maps: Mapping[str, Any] = field(default_factory=dict)  # block → its output; filled for ``Penalty.maps``


@dataclass(frozen=True)
class Penalty:
    """A penalty of one fit. ``term(batch)`` returns a scalar, which the loss adds.

    A penalty on θ counts once a step, whatever the accumulation. A penalty on a batch counts by the batch's
    share of the step's rows.
    """

    term: Callable[[Batch], Tensor]
    per: Literal["step", "batch"] = "step"
    maps: bool = False  # True: ``term`` reads the outputs of blocks, so every block must have a ``run``
    needs_inputs: bool = True  # True: ``term`` reads Batch.inputs, so no cached output takes their place
    # a proximal step of (parameters, rates) by name, after the optimizer's step
    after: Callable[[Mapping[str, Tensor], Mapping[str, float]], None] | None = None
    draws: Draws | None = None  # the term's own batches; a checkpoint saves their position


Found = TypeVar("Found")


class Draws(Protocol):
    """Endless batches that can continue from any position."""

    drawn: int  # batches so far; setting it moves there

    def __next__(self) -> tuple[tuple[str, ...], Inputs, Tensor]: ...


class SourceRows(Protocol):
    """Labelled rows of the source task that penalties may draw from."""

    @property
    def task(self) -> Task: ...

    def batches(self, part: Literal["fit"]) -> Iterable[tuple[tuple[str, ...], Inputs, Tensor]]:
        """Return one pass over the rows, preprocessed as for evaluation."""
        ...

    def draws(self) -> Draws:
        """Return endless batches, augmented as in training and on its device."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """Return what ``compute`` gave at the first call with this key; the seeds of a run share it."""
        ...


class TrainRows(Protocol):
    """The labelled rows that a fit trains on."""

    @property
    def task(self) -> Task: ...

    def sample(self, rows: int) -> Iterable[tuple[tuple[str, ...], Inputs, Tensor]]:
        """Return ``rows`` of the rows, or all where there are fewer, preprocessed as for evaluation.

        Their content decides which, so neither their order nor a seed matters.
        """
        ...

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """Return what ``compute`` gave at the first call with this key; the seeds of a run share it."""
        ...


@runtime_checkable
class Regularizer(Protocol):
    """Options of a penalty, to be inherited: a plug-in states only where it differs from here."""

    uses_source: ClassVar[bool] = False  # True: it has no effect where nothing was kept
    needs_source_data: ClassVar[bool] = False  # True: it needs labelled rows of the source task
    pulls_to_source: ClassVar[bool] = False  # True: it pulls each weight to its source value
    shrinks_to_zero: ClassVar[bool] = False  # True: it pulls every weight to 0, kept ones too

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        """Return the penalty of a fit. The target stays bitwise unchanged.

        Raises PlanError where the penalty does not suit the target or its source.
        """
        ...

    def needs_fit(self) -> Mapping[str, str]:
        """Return the values that the plan's ``[fit]`` must have: {"optimizer": "SGD"}."""
        return {}
