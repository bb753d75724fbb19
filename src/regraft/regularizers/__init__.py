"""Penalties, one file each; found by its name, see :mod:`regraft.plugins`."""

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
    """What a penalty may look at, once a micro-batch."""

    step: int
    ids: tuple[str, ...]
    params: Mapping[str, Tensor]  # trainable only, by name in the target model
    inputs: Inputs
    features: Tensor  # [B, D]
    logits: Tensor  # [B, C]
    targets: Tensor  # [B] or [B, C]
    maps: Mapping[str, Any] = field(default_factory=dict)  # block → its output, where asked for


@dataclass(frozen=True)
class Penalty:
    """``term(batch)`` is a scalar. A penalty on θ counts once a step, whatever the accumulation;
    one on a batch counts by that batch's share of the step's rows. ``after(params, rates)`` is a
    proximal step on the trainable parameters, by name, after the optimiser's. ``draws`` is what the
    term draws batches of its own from, so that a fit that is resumed goes on where it was."""

    term: Callable[[Batch], Tensor]
    per: Literal["step", "batch"] = "step"
    maps: bool = False  # it looks at the outputs of blocks, so all of them must have a ``run``
    needs_inputs: bool = True  # it looks at Batch.inputs; else cached outputs may take their place
    after: Callable[[Mapping[str, Tensor], Mapping[str, float]], None] | None = None
    draws: Draws | None = None


Found = TypeVar("Found")


class Draws(Protocol):
    """Batches without end, which can go on from anywhere."""

    drawn: int  # batches so far; setting it goes there

    def __next__(self) -> tuple[tuple[str, ...], Inputs, Tensor]: ...


class SourceRows(Protocol):
    """Labelled rows of the source task that penalties may draw from."""

    @property
    def task(self) -> Task: ...

    def batches(self, part: Literal["fit"]) -> Iterable[tuple[tuple[str, ...], Inputs, Tensor]]:
        """Once over them, as evaluation sees them."""
        ...

    def draws(self) -> Draws:
        """Batches without end, augmented as training is and on its device."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time; the seeds of a run share it."""
        ...


class TrainRows(Protocol):
    """The labelled rows that a fit trains on."""

    @property
    def task(self) -> Task: ...

    def sample(self, rows: int) -> Iterable[tuple[tuple[str, ...], Inputs, Tensor]]:
        """That many of them, or all where there are fewer, as evaluation sees them; by content, so
        that neither their order nor a seed matters."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time; the seeds of a run share it."""
        ...


@runtime_checkable
class Regularizer(Protocol):
    """Options of a penalty, to be inherited: a plug-in says only where it differs from here."""

    uses_source: ClassVar[bool] = False  # means nothing where nothing was kept
    needs_source_data: ClassVar[bool] = False  # labelled rows of the source task
    pulls_to_source: ClassVar[bool] = False  # by each weight's distance to its source value
    shrinks_to_zero: ClassVar[bool] = False  # on every weight, kept ones too

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        """The penalty of a fit. The target stays bitwise untouched.

        Raises PlanError where the penalty does not suit the target or its source.
        """
        ...

    def needs_fit(self) -> Mapping[str, str]:
        """What the plan's ``[fit]`` has to say for it: {"optimizer": "SGD"}."""
        return {}
