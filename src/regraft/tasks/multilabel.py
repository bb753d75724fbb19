"""Any number of labels a row, learnt by binary cross-entropy.

    loss_i = −(1/C) Σ_c [ t_ic log σ(z_ic) + (1 − t_ic) log(1 − σ(z_ic)) ]

The labels stand in one column with a separator ("sea;beach"), or in a 0/1 column each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ..errors import DataError, did_you_mean, shorten
from . import Cells, Task, TaskKind, TaskOptions, fields_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray


FLAGS = {"0": False, "1": True, "false": False, "true": True}


def _present(cells: tuple[str, ...], names: Sequence[str], separator: str) -> list[str]:
    """Return the labels of one row without problems, in a stable order."""
    if len(cells) == 1:
        return list(dict.fromkeys(p.strip() for p in cells[0].split(separator) if p.strip()))
    return [n for n, cell in zip(names, cells, strict=True) if FLAGS[cell.strip().lower()]]


class _Kind(TaskKind):
    name = "multilabel"
    targets = "labels"
    activation = "sigmoid"
    default_metrics = ("map", "micro_f1", "macro_f1_labels")
    summary_metrics = ("map", "micro_f1")
    trivial_control = "majority"
    empty_labels = True


@dataclass(frozen=True)
class MultiLabel(_Kind, TaskOptions):
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    threshold: float = 0.5  # least probability at which a label is given
    separator: str = ";"  # between the labels of one column
    primary: str = "map"  # metric that choices are made by
    metrics: tuple[str, ...] = ()  # further files of metrics/ to compute

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")
        if not self.separator:
            raise ValueError("separator must not be empty")
        self.check_metrics()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return why cells cannot be read, before the labels are known."""
        if not cells:
            return "the label is missing"
        if len(cells) == 1:
            return None  # an empty cell is a row without labels
        bad = [c for c in cells if c.strip().lower() not in FLAGS]
        return f'"{bad[0]}" is neither 0 nor 1' if bad else None

    def strata(self, cells: Cells) -> list[str]:
        """Return the rarest label of each row (ties: the first by name), or "none"."""
        rows = [_present(r, [f"column {i + 1}" for i in range(len(r))], self.separator) for r in cells]
        counts = Counter(label for row in rows for label in row)
        return [min(row, key=lambda n: (counts[n], n)) if row else "none" for row in rows]

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _MultiLabel:
        """Return the task of these training labels.

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
            further_metrics=self.metrics,
            threshold=self.threshold,
            separator=self.separator,
            one_column=len(columns) == 1,
        )


@dataclass(frozen=True)
class _MultiLabel(_Kind, Task):
    classes: tuple[str, ...]
    primary: str
    threshold: float
    separator: str
    one_column: bool
    further_metrics: tuple[str, ...] = ()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return what is wrong with one row's labels; None if nothing is."""
        wanted = 1 if self.one_column else self.outputs
        if len(cells) != wanted:
            return f"{len(cells)} label cells where {wanted} belong"
        words = MultiLabel(separator=self.separator).problem(cells)
        if words or not self.one_column:
            return words
        unknown = [p for p in _present(cells, self.classes, self.separator) if p not in self.numbers]
        if not unknown:
            return None
        hint = did_you_mean(unknown[0], self.classes)
        return f'"{unknown[0]}" is not a label of the training rows; {hint}'

    def encode(self, cells: Cells) -> Tensor:
        """Return zeros and ones [N, C] float32 of label cells. Raises DataError for a bad row."""
        import torch

        targets = torch.zeros(len(cells), self.outputs)
        on = [(i, k) for i, row in enumerate(cells) for k in self._labels(row, i)]
        if on:
            targets[tuple(torch.tensor(on).T)] = 1.0
        return targets

    def names(self, cells: tuple[str, ...]) -> tuple[str, ...]:
        """Return the labels of one row in the order of the classes. Raises DataError for a bad row."""
        return tuple(self.classes[k] for k in sorted(self._labels(cells, 0)))

    def _labels(self, cells: tuple[str, ...], row: int) -> list[int]:
        if words := self.problem(cells):
            raise DataError(f"row {row + 1}: {words}")
        return [self.numbers[name] for name in _present(cells, self.classes, self.separator)]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return nats [B], the mean over labels, of logits [B, C] and targets [B, C] in [0, 1]."""
        import torch.nn.functional as F

        logits = logits if logits.dtype.itemsize > 4 else logits.float()  # float64 stays
        cells = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return cells.mean(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        """Return probabilities [B, C] float64 of logits [B, C]."""
        return logits.double().sigmoid()

    def label(self, scores: FloatArray) -> str:
        """Return the labels at or above the threshold, joined by the separator."""
        return self.separator.join(self.classes[k] for k in (scores >= self.threshold).nonzero()[0])

    def constant(self, targets: Tensor) -> Tensor:
        """Return label frequencies [C] float64 of targets [N, C]."""
        return targets.double().mean(dim=0)

    def wrongness(self, truth: Any, scores: Any) -> FloatArray:
        """Return the mean distance of probabilities to the truth [N]; 0 where every label is right."""
        wrong = ((scores >= self.threshold) != (truth >= self.threshold)).any(1)
        result: FloatArray = wrong * abs(truth - scores).mean(1)
        return result

    def state(self) -> dict[str, Any]:
        """Return plain JSON for ``restore``."""
        return {
            **super().state(),
            "threshold": self.threshold,
            "separator": self.separator,
            "one_column": self.one_column,
        }


STATE = {
    "threshold": Annotated[float, Field(ge=0, le=1)],
    "separator": Annotated[str, Field(min_length=1, max_length=100)],
    "one_column": bool,
}


def restore(state: dict[str, Any]) -> _MultiLabel:
    """Return the task that ``state()`` described."""
    return _MultiLabel(**fields_of(_MultiLabel, state))
