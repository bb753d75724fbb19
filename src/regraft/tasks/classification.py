"""One class a row, learnt by cross-entropy.

    loss_i = −Σ_c w_c · t'_ic · log softmax(z_i)_c,    t' = (1 − ε)·t + ε/C

t is one-hot, or mixed (MixUp). Balanced weights are w_c = N / (C · N_c): their mean over the
training rows is 1, so that the learning rate keeps its meaning. Label smoothing ε: Szegedy et al.
2016, section 7.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..errors import DataError, did_you_mean, shorten
from . import Cells, Task, TaskKind, TaskOptions, fields_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray


class _Kind(TaskKind):
    name = "classification"
    targets = "class"
    activation = "softmax"
    default_metrics = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece", "auc")
    summary_metrics = ("accuracy", "macro_f1")
    trivial_control = "majority"

    def names(self, cells: tuple[str, ...]) -> tuple[str, ...]:
        """Return the row's class."""
        return cells


@dataclass(frozen=True)
class Classification(_Kind, TaskOptions):
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    label_smoothing: float = 0.0  # ε, 0 ≤ ε < 1; 0 switches it off
    class_weights: Literal["none", "balanced"] = "none"
    primary: str = "accuracy"  # metric that choices are made by
    metrics: tuple[str, ...] = ()  # further files of metrics/ to compute

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        self.check_metrics()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return why a label cannot be read, before the classes are known."""
        return None if cells and cells[0].strip() else "the label is empty"

    def strata(self, cells: Cells) -> list[str]:
        """Return the label of each row."""
        return [row[0] for row in cells]

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _Classification:
        """Return the task of these training labels; classes are sorted by name.

        Raises DataError for several label columns, an empty label or fewer than two classes.
        """
        if len(columns) != 1:
            raise DataError(
                f"classification needs one label column and there are {len(columns)} "
                f"({shorten(columns)}): name one, or say --task multilabel or --task regression"
            )
        empty = [str(i + 1) for i, row in enumerate(cells) if self.problem(row)]
        if empty:
            raise DataError(
                f"{len(empty)} of {len(cells)} training labels are empty (rows {shorten(empty)}): "
                "fill them or remove the rows"
            )
        counts = Counter(self.strata(cells))
        if len(counts) < 2:
            raise DataError(
                f"classification needs at least 2 classes in the training rows, found "
                f"{shorten(sorted(counts)) or 'none'}: add rows of another class"
            )
        classes = tuple(sorted(counts))
        balanced = tuple(len(cells) / (len(counts) * counts[c]) for c in classes)
        return _Classification(
            classes=classes,
            primary=self.primary,
            further_metrics=self.metrics,
            label_smoothing=self.label_smoothing,
            weights=balanced if self.class_weights == "balanced" else None,
        )


@dataclass(frozen=True)
class _Classification(_Kind, Task):
    classes: tuple[str, ...]
    primary: str = "accuracy"
    label_smoothing: float = 0.0
    weights: tuple[float, ...] | None = None  # [C]
    further_metrics: tuple[str, ...] = ()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return what is wrong with one row's label; None if nothing is."""
        if not cells or not cells[0].strip():
            return "the label is empty"
        if cells[0] in self.numbers:
            return None
        hint = did_you_mean(cells[0], self.classes)
        return f'"{cells[0]}" is not a class of the training rows; {hint}'

    def encode(self, cells: Cells) -> Tensor:
        """Return class numbers [N] int64 of label cells. Raises DataError for the first bad row."""
        import torch

        number = self.numbers
        for i, row in enumerate(cells):
            if not row or row[0] not in number:
                raise DataError(f"row {i + 1}: {self.problem(row)}")
        return torch.tensor([number[row[0]] for row in cells], dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return nats [B] of logits [B, C] and targets: [B] ints, or [B, C] shares."""
        import torch.nn.functional as F

        logits = logits if logits.dtype.itemsize > 4 else logits.float()  # float64 stays
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        return F.cross_entropy(logits, targets, weight=weight, reduction="none", label_smoothing=self.label_smoothing)

    def scores(self, logits: Tensor) -> Tensor:
        """Return probabilities [B, C] float64 of logits [B, C]; float32 would round small ones to 0."""
        return logits.double().softmax(dim=-1)

    def label(self, scores: FloatArray) -> str:
        """Return the most probable class."""
        return self.classes[int(scores.argmax())]

    def constant(self, targets: Tensor) -> Tensor:
        """Return class frequencies [C] float64 of targets [N]."""
        import torch

        return torch.bincount(targets, minlength=self.outputs).double() / len(targets)

    def wrongness(self, truth: Any, scores: Any) -> FloatArray:
        """Return the probability that a wrong answer has [N]; 0 for a right one."""
        wrong = scores.argmax(1) != truth
        result: FloatArray = wrong * scores.max(1)
        return result

    def state(self) -> dict[str, Any]:
        """Return plain JSON for ``restore``."""
        return {
            **super().state(),
            "label_smoothing": self.label_smoothing,
            "weights": None if self.weights is None else list(self.weights),
        }


STATE = {
    "label_smoothing": Annotated[float, Field(ge=0, lt=1)],
    "weights": list[Annotated[float, Field(ge=-1e100, le=1e100)]] | None,
}


def restore(state: dict[str, Any]) -> _Classification:
    """Return the task that ``state()`` described. Raises ValueError unless each class has its weight."""
    weights = state.get("weights")
    if weights is not None and len(weights) != len(state["classes"]):
        raise ValueError("weights are not one for each class")
    return _Classification(**fields_of(_Classification, state))
