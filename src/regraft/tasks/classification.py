"""One class a row, learnt by cross-entropy.

    loss_i = −Σ_c w_c · t'_ic · log softmax(z_i)_c,    t' = (1 − ε)·t + ε/C

t is one-hot, or mixed (MixUp). Balanced weights are w_c = N / (C · N_c): their mean over the
training rows is 1, so that the learning rate keeps its meaning. Label smoothing ε: Szegedy et al.
2016, section 7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import DataError, did_you_mean, shorten

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray


METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece", "auc")

Cells = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Classification:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    label_smoothing: float = 0.0  # ε, 0 ≤ ε < 1
    class_weights: Literal["none", "balanced"] = "none"
    primary: str = "accuracy"  # the metric that choices are made by

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if self.primary not in METRICS:
            raise ValueError(f'primary has no "{self.primary}"; {did_you_mean(self.primary, METRICS)}')

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's label before the classes are known."""
        return None if cells and cells[0].strip() else "the label is empty"

    def strata(self, cells: Cells) -> list[str]:
        """The label of each row."""
        return [row[0] for row in cells]

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _Classification:
        """The task of these training labels; classes are sorted by name.

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
            label_smoothing=self.label_smoothing,
            weights=balanced if self.class_weights == "balanced" else None,
        )


@dataclass(frozen=True)
class _Classification:
    classes: tuple[str, ...]
    primary: str
    label_smoothing: float
    weights: tuple[float, ...] | None  # [C]
    name: str = "classification"
    metrics: tuple[str, ...] = METRICS

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.classes)}

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's label, in words, or None."""
        if not cells or not cells[0].strip():
            return "the label is empty"
        if cells[0] in self._numbers:
            return None
        hint = did_you_mean(cells[0], self.classes)
        return f'"{cells[0]}" is not a class of the training rows; {hint}'

    def encode(self, cells: Cells) -> Tensor:
        """Label cells → class numbers [N] int64. Raises DataError for the first bad row."""
        import torch

        number = self._numbers
        for i, row in enumerate(cells):
            if not row or row[0] not in number:
                raise DataError(f"row {i + 1}: {self.problem(row)}")
        return torch.tensor([number[row[0]] for row in cells], dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B] ints or [B, C] shares → nats, [B]."""
        import torch.nn.functional as F

        logits = logits if logits.dtype.itemsize > 4 else logits.float()  # float64 stays
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        return F.cross_entropy(logits, targets, weight=weight, reduction="none", label_smoothing=self.label_smoothing)

    def scores(self, logits: Tensor) -> Tensor:
        """logits [B, C] → probabilities [B, C] float64 (float32 rounds small ones to 0)."""
        return logits.double().softmax(dim=-1)

    def label(self, scores: FloatArray) -> str:
        """The most probable class."""
        return self.classes[int(scores.argmax())]

    def truth(self, targets: Tensor) -> Tensor:
        """Class numbers [N]."""
        return targets

    def constant(self, targets: Tensor) -> Tensor:
        """targets [N] → class frequencies [C] float64."""
        import torch

        return torch.bincount(targets, minlength=self.outputs).double() / len(targets)

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "classes": list(self.classes),
            "primary": self.primary,
            "label_smoothing": self.label_smoothing,
            "weights": None if self.weights is None else list(self.weights),
        }


def restore(state: dict[str, Any]) -> _Classification:
    """The task that ``state()`` described."""
    weights = state["weights"]
    return _Classification(
        classes=tuple(state["classes"]),
        primary=state["primary"],
        label_smoothing=state["label_smoothing"],
        weights=None if weights is None else tuple(weights),
    )
