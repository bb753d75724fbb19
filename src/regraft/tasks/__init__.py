"""Tasks, one file each: the targets, loss and scores of a run; found by name, see :mod:`regraft.plugins`.

A file holds one public options dataclass, which inherits :class:`TaskOptions` and whose ``make`` builds the
:class:`Task` of the training labels; and a function ``restore(state)``, which builds that task again from a
run's files. STATE, a dict, has pydantic's types of the keys that ``Task.state`` adds; readers check a run's file with
it before ``restore``, which raises ValueError for values that do not fit together. Code outside this folder asks a
task for a fact, and never for its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

from .. import plugins
from ..errors import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray, Targets


DEFAULT_TASK = "classification"  # task of a plan that names none, and of a source's head

Activation = Literal["softmax", "sigmoid", "exp", "none"]

Cells = Sequence[tuple[str, ...]]  # label cells of each row


class TaskKind(Protocol):
    """Facts of a task that need no data; its options and the task made of them share these.

    The defaults suit numbers: a task states where it differs.
    """

    name: ClassVar[str]  # name of its file
    targets: ClassVar[Targets] = "numbers"  # kind of the targets
    activation: ClassVar[Activation] = "none"  # scores = activation(logits); with "none" see ``Task.affine``
    default_metrics: ClassVar[tuple[str, ...]]  # files of metrics/ that every run computes
    summary_metrics: ClassVar[tuple[str, ...]] = ()  # those of them that a summary shows beside ``primary``
    trivial_control: ClassVar[str] = "mean"  # name of the control whose scores are ``Task.constant``
    empty_labels: ClassVar[bool] = False  # True: a row may have no label

    @property
    def has_classes(self) -> bool:
        """Return whether each row has exactly one class."""
        return self.targets == "class"

    @property
    def has_numbers(self) -> bool:
        """Return whether scores are numbers in their own units; else they are probabilities."""
        return self.targets == "numbers"

    @property
    def calibrates(self) -> bool:
        """Return whether a temperature on the logits calibrates the probabilities."""
        return self.has_classes and self.activation == "softmax"

    def names(self, cells: tuple[str, ...]) -> tuple[str, ...]:
        """Return the class or the labels of a row; nothing for numbers."""
        return ()


class TaskOptions(TaskKind, Protocol):
    """Options of a task, to be inherited by a dataclass."""

    primary: str  # metric that choices are made by
    metrics: tuple[str, ...]  # further files of metrics/, computed beside ``default_metrics``

    def check_metrics(self) -> None:
        """Raise ValueError for a metric that is missing or takes other targets, and for an unknown ``primary``."""
        there = plugins.names("metrics")
        for name in self.metrics:
            if name not in there:
                raise ValueError(f'metrics has no "{name}"; {did_you_mean(name, there)}')
            takes = plugins.module("metrics", name).targets
            if takes != self.targets:
                raise ValueError(f'metrics: "{name}" takes {takes}, and {self.name} has {self.targets}: remove it')
        known = (*self.default_metrics, *self.metrics)
        if self.primary in known:
            return
        hint = did_you_mean(self.primary, known)
        if self.primary in there:
            hint = f'add it: metrics = ["{self.primary}"]'
        raise ValueError(f'primary has no "{self.primary}"; {hint}')

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return what is wrong with one row's label cells before the classes are known; None if nothing is."""
        ...

    def strata(self, cells: Cells) -> list[str]:
        """Return the stratum of each row; each split and fold keeps their shares."""
        ...

    def make(self, cells: Cells, columns: tuple[str, ...]) -> Task:
        """Return the task of these training labels. Raises DataError for labels that do not suit it."""
        ...


class Task(TaskKind, Protocol):
    """A task of known classes, to be inherited by a dataclass. It is saved with the run."""

    classes: tuple[str, ...]  # names of classes, labels or numbers, in output order
    primary: str  # metric that choices are made by
    further_metrics: tuple[str, ...]  # metrics beside ``default_metrics``

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the files of metrics/ that a run computes."""
        return tuple(dict.fromkeys((*self.default_metrics, *self.further_metrics)))

    @property
    def outputs(self) -> int:
        """Return C."""
        return len(self.classes)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return each class's number in output order."""
        return {c: i for i, c in enumerate(self.classes)}

    @property
    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return (scale [C], shift [C]) where scores are scale · logits + shift; None where they are not."""
        return None

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return what is wrong with one row's label cells; None if nothing is."""
        ...

    def encode(self, cells: Cells) -> Tensor:
        """Return targets of label cells: [N] int64, or [N, C] float32. Raises DataError for a bad row."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row [B] from logits [B, C]; targets as encoded, or mixed: [B, C] float."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Return scores [B, C] float64 of logits [B, C]: probabilities, or numbers in their own units."""
        ...

    def truth(self, targets: Tensor) -> Tensor:
        """Return what metrics compare scores with: targets as encoded, or numbers in their own units."""
        return targets

    def label(self, scores: FloatArray) -> str:
        """Return the answer of one row's scores [C]: a class, labels joined by ";", or numbers."""
        return ";".join(f"{v:.6g}" for v in scores)

    def constant(self, targets: Tensor) -> Tensor:
        """Return the trivial control's scores [C]: training frequencies, or the training mean."""
        ...

    def wrongness(self, truth: Any, scores: Any) -> FloatArray:
        """Return how wrong each row is [N], 0 where it is right.

        Of numbers: the distance to the truth in standard deviations of the truth, summed over outputs.
        """
        truth = truth.reshape(scores.shape)
        spread = truth.std(0)
        spread[~(spread > 0)] = 1.0
        result: FloatArray = (abs(truth - scores) / spread).sum(1)
        return result

    def state(self) -> dict[str, Any]:
        """Return plain JSON from which ``restore`` of the task's file builds this task again."""
        return {
            "task": self.name,
            "classes": list(self.classes),
            "primary": self.primary,
            **({"metrics": list(self.further_metrics)} if self.further_metrics else {}),
        }


def kind_of(name: str) -> type[TaskOptions]:
    """Return the options class of a task, which carries its facts. Raises LookupError for an unknown name."""
    return cast("type[TaskOptions]", plugins.options_class("tasks", name))


def fields_of(task: type[Any], state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as the fields of the task's dataclass, for ``restore``: lists as tuples, no unknown key."""
    known = {field.name for field in fields(task)} & state.keys()
    found = {name: tuple(value) if isinstance(value := state[name], list) else value for name in known}
    return {**found, "further_metrics": tuple(state.get("metrics", ()))}
