"""How many test rows of each class are taken for each class, as result.json has it.

Of few classes it is a matrix, true class down, predicted class across. Of more than MATRIX_CLASSES it is the
cells that are not zero, {"truth": [...], "predicted": [...], "rows": [...]}, since a matrix grows with the
square of the classes and its cells with the rows alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

MATRIX_CLASSES = 100  # up to which all cells are written


def record_of(truth: Iterable[int], predicted: Iterable[int], classes: int) -> Any:
    """Return what result.json keeps of these class numbers [N]."""
    cells = Counter(zip(truth, predicted, strict=True))
    if classes <= MATRIX_CLASSES:
        return [[cells[t, p] for p in range(classes)] for t in range(classes)]
    ordered = sorted(cells)
    return {
        "truth": [t for t, _ in ordered],
        "predicted": [p for _, p in ordered],
        "rows": [cells[cell] for cell in ordered],
    }


def rows_of(record: Any, classes: int) -> list[dict[int, int]]:
    """Return of each true class its test rows by predicted class, without zeros.

    Raises ValueError for a record that is not about so many classes.
    """
    if isinstance(record, list):
        if len(record) != classes or any(len(row) != classes for row in record):
            raise ValueError(f"the confusion is no matrix of {classes} classes")
        return [{p: n for p, n in enumerate(row) if n} for row in record]
    found: list[dict[int, int]] = [{} for _ in range(classes)]
    for t, p, n in zip(record["truth"], record["predicted"], record["rows"], strict=True):
        if not (0 <= t < classes and 0 <= p < classes):
            raise ValueError(f"the confusion has a class {max(t, p)} of {classes}")
        found[t][p] = n
    return found


def column_sums(rows: list[dict[int, int]]) -> list[int]:
    """Return of each class how many rows are taken for it."""
    sums = [0] * len(rows)
    for row in rows:
        for p, n in row.items():
            sums[p] += n
    return sums
