"""Any number of labels a row, learnt by binary cross-entropy.

    loss_i = −(1/C) Σ_c [ t_ic log σ(z_ic) + (1 − t_ic) log(1 − σ(z_ic)) ]

The labels stand in one column with a separator ("sea;beach"), or in a 0/1 column each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import DataError, did_you_mean, shorten

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray


METRICS = ("map", "micro_f1", "macro_f1_labels")

FLAGS = {"0": False, "1": True, "false": False, "true": True}

Cells = Sequence[tuple[str, ...]]


def _present(cells: tuple[str, ...], names: Sequence[str], separator: str) -> list[str]:
    """The labels of one row without problems, in a stable order."""
    if len(cells) == 1:
        return list(dict.fromkeys(p.strip() for p in cells[0].split(separator) if p.strip()))
    return [n for n, cell in zip(names, cells, strict=True) if FLAGS[cell.strip().lower()]]


@dataclass(frozen=True)
class MultiLabel:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    empty_labels: ClassVar[bool] = True  # a row may have no label

    threshold: float = 0.5  # a label is given where its probability is at least this
    separator: str = ";"  # between labels, where they stand in one column
    primary: str = "map"  # the metric that choices are made by

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")
        if not self.separator:
            raise ValueError("separator must not be empty")
        if self.primary not in METRICS:
            raise ValueError(f'primary has no "{self.primary}"; {did_you_mean(self.primary, METRICS)}')

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's cells before the labels are known."""
        if not cells:
            return "the label is missing"
        if len(cells) == 1:
            return None  # an empty cell is a row without labels
        bad = [c for c in cells if c.strip().lower() not in FLAGS]
        return f'"{bad[0]}" is neither 0 nor 1' if bad else None

    def strata(self, cells: Cells) -> list[str]:
        """Each row's rarest label (ties: the first by name), or "none"."""
        rows = [_present(r, [f"column {i + 1}" for i in range(len(r))], self.separator) for r in cells]
        counts = Counter(label for row in rows for label in row)
        return [min(row, key=lambda n: (counts[n], n)) if row else "none" for row in rows]

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _MultiLabel:
        """The task of these training labels.

        One column: labels sorted by name. Several: their names in their order. Raises DataError for
        a cell that is not 0 or 1 among several columns, or no label at all.
        """
        bad = [f"row {i + 1}: {p}" for i, row in enumerate(cells) if (p := self.problem(row))]
        if bad:
            raise DataError(
                f"{len(bad)} of {len(cells)} training rows have a bad label ({shorten(bad, 3)}): "
                "write 0 or 1 in every label column"
            )
        found = {label for row in cells for label in _present(row, columns, self.separator)}
        if len(columns) == 1 and found and found <= {"0", "1", "true", "false"}:
            raise DataError(
                f'the label column "{columns[0]}" is 0 or 1: say --task classification, or name several such columns'
            )
        if not found:
            raise DataError("no training row has a label: add some, or name another label column")
        return _MultiLabel(
            classes=tuple(sorted(found)) if len(columns) == 1 else tuple(columns),
            primary=self.primary,
            threshold=self.threshold,
            separator=self.separator,
            one_column=len(columns) == 1,
        )


@dataclass(frozen=True)
class _MultiLabel:
    classes: tuple[str, ...]
    primary: str
    threshold: float
    separator: str
    one_column: bool
    empty_labels: ClassVar[bool] = True  # a row may have no label
    name: str = "multilabel"
    metrics: tuple[str, ...] = METRICS

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.classes)}

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's labels, in words, or None."""
        wanted = 1 if self.one_column else self.outputs
        if len(cells) != wanted:
            return f"{len(cells)} label cells where {wanted} belong"
        words = MultiLabel(separator=self.separator).problem(cells)
        if words or not self.one_column:
            return words
        unknown = [p for p in _present(cells, self.classes, self.separator) if p not in self._numbers]
        if not unknown:
            return None
        hint = did_you_mean(unknown[0], self.classes)
        return f'"{unknown[0]}" is not a label of the training rows; {hint}'

    def encode(self, cells: Cells) -> Tensor:
        """Label cells → [N, C] float32 of zeros and ones. Raises DataError for a bad row."""
        import torch

        targets = torch.zeros(len(cells), self.outputs)
        on = [(i, k) for i, row in enumerate(cells) for k in self._labels(row, i)]
        if on:
            targets[tuple(torch.tensor(on).T)] = 1.0
        return targets

    def given(self, cells: tuple[str, ...]) -> tuple[str, ...]:
        """One row's labels in the order of the classes. Raises DataError for a bad row."""
        return tuple(self.classes[k] for k in sorted(self._labels(cells, 0)))

    def _labels(self, cells: tuple[str, ...], row: int) -> list[int]:
        if words := self.problem(cells):
            raise DataError(f"row {row + 1}: {words}")
        return [self._numbers[name] for name in _present(cells, self.classes, self.separator)]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B, C] in [0, 1] → nats, the mean over labels, [B]."""
        import torch.nn.functional as F

        logits = logits if logits.dtype.itemsize > 4 else logits.float()  # float64 stays
        cells = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return cells.mean(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        """logits [B, C] → probabilities [B, C] float64."""
        return logits.double().sigmoid()

    def label(self, scores: FloatArray) -> str:
        """The labels at or above the threshold, joined by the separator."""
        return self.separator.join(self.classes[k] for k in (scores >= self.threshold).nonzero()[0])

    def truth(self, targets: Tensor) -> Tensor:
        """Zeros and ones [N, C]."""
        return targets

    def constant(self, targets: Tensor) -> Tensor:
        """targets [N, C] → label frequencies [C] float64."""
        return targets.double().mean(dim=0)

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "classes": list(self.classes),
            "primary": self.primary,
            "threshold": self.threshold,
            "separator": self.separator,
            "one_column": self.one_column,
        }


def restore(state: dict[str, Any]) -> _MultiLabel:
    """The task that ``state()`` described."""
    return _MultiLabel(
        classes=tuple(state["classes"]),
        primary=state["primary"],
        threshold=state["threshold"],
        separator=state["separator"],
        one_column=state["one_column"],
    )
