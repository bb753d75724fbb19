"""The confusion of result.json: test rows by true and predicted class.

Up to MATRIX_CLASSES classes it is a matrix, true class down, predicted class across. Of more classes it is the
cells that are not zero, because a matrix grows with the square of the classes, and its cells with the rows alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from .records import Count

MATRIX_CLASSES = 100  # classes up to which all cells are written


@dataclass(frozen=True)
class Cells:
    """The cells of a large confusion matrix that are not zero: parallel lists."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"use_attribute_docstrings": True}

    truth: list[Count]
    """Number of the true class."""
    predicted: list[Count]
    """Number of the predicted class."""
    rows: list[Count]
    """Test rows of the cell."""


Confusion = list[list[Count]] | Cells


def confusion_of(truth: Iterable[int], predicted: Iterable[int], classes: int) -> Confusion:
    """Return the confusion of these class numbers [N]."""
    cells = Counter(zip(truth, predicted, strict=True))
    if classes <= MATRIX_CLASSES:
        return [[cells[t, p] for p in range(classes)] for t in range(classes)]
    ordered = sorted(cells)
    return Cells([t for t, _ in ordered], [p for _, p in ordered], [cells[cell] for cell in ordered])


def rows_of(confusion: Confusion, classes: int) -> list[dict[int, int]]:
    """Return each true class's test rows by predicted class, without zeros.

    Raises ValueError for a confusion of another number of classes.
    """
    if isinstance(confusion, list):
        if len(confusion) != classes or any(len(row) != classes for row in confusion):
            raise ValueError(f"the confusion is no matrix of {classes} classes")
        return [{p: n for p, n in enumerate(row) if n} for row in confusion]
    rows: list[dict[int, int]] = [{} for _ in range(classes)]
    for t, p, n in zip(confusion.truth, confusion.predicted, confusion.rows, strict=True):
        if not (0 <= t < classes and 0 <= p < classes):
            raise ValueError(f"the confusion has a class {max(t, p)} of {classes}")
        rows[t][p] = n
    return rows


def column_sums(rows: list[dict[int, int]]) -> list[int]:
    """Return how many rows are taken for each class."""
    sums = [0] * len(rows)
    for row in rows:
        for p, n in row.items():
            sums[p] += n
    return sums
