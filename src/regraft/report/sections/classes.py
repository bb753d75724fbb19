"""Recall and precision of every class, and the class that it is most often confused with."""

from __future__ import annotations

from typing import Any

from ...runs.confusion import column_sums, rows_of
from ..reading import RunFiles

ORDER, TITLE = 60, "Classes"

TEMPLATE = """
{{ m.table(["class", "test rows", "recall", "precision", "most often taken for"], rows, caption) }}
{% if matrix %}
<h3>Confusion</h3>
<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table>
<caption>Rows are the truth, columns the answer; test rows.</caption>
<thead><tr><th scope="col">truth</th>
{% for c in classes %}<th scope="col" class="cell">{{ c }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in matrix %}
<tr><th scope="row">{{ classes[loop.index0] }}</th>
{% for cell in row %}<td class="cell" style="background: rgb({{ cell.color }})">{{ cell.rows or "" }}</td>{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
"""

RIGHT, WRONG = "46 157 100", "217 99 42"  # red, green and blue of a cell

MAX_MATRIX_CLASSES, MAX_LISTED_CLASSES = 25, 200  # above: no matrix; only the weakest in the table


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    classes = run.result.classes
    if not run.result.confusion:
        return f"A {run.result.task} task has no table of classes."
    confusion = rows_of(run.result.confusion, len(classes))
    supports, taken_for = [sum(row.values()) for row in confusion], column_sums(confusion)
    recalls = [row.get(i, 0) / n if n else 2.0 for i, (row, n) in enumerate(zip(confusion, supports, strict=True))]
    weakest = sorted(range(len(classes)), key=recalls.__getitem__)[:MAX_LISTED_CLASSES]
    few = f"; the {MAX_LISTED_CLASSES} weakest of {len(classes)}" if len(classes) > MAX_LISTED_CLASSES else ""
    return {
        "rows": [line(i, confusion[i], classes, supports[i], taken_for[i]) for i in weakest],
        "classes": classes,
        "caption": f"By class, the weakest first{few}; Wilson intervals, each class by itself",
        "matrix": matrix(confusion, supports) if len(classes) <= MAX_MATRIX_CLASSES else [],
    }


def line(
    i: int, row: dict[int, int], classes: list[str], support: int, taken_for: int
) -> tuple[str, int, str, str, str]:
    """Return the cells of one class in the table."""
    from ...evidence.intervals import wilson

    right = row.get(i, 0)
    recall, precision = (
        f"{right / n:.3f} [{low:.3f}, {high:.3f}]" if n else "–"
        for n in (support, taken_for)
        for low, high in [wilson(right, n) if n else (0.0, 1.0)]
    )
    rows, other = max(((n, j) for j, n in row.items() if j != i), default=(0, 0))
    return classes[i], support, recall, precision, f"{classes[other]} ({rows})" if rows else ""


def matrix(confusion: list[dict[int, int]], supports: list[int]) -> list[list[dict[str, Any]]]:
    """Return every cell with its rows and its colour."""
    return [
        [
            {"rows": n, "color": f"{RIGHT if i == j else WRONG} / {0.6 * n / max(1, supports[i]):.2f}"}
            for j in range(len(confusion))
            for n in [row.get(j, 0)]
        ]
        for i, row in enumerate(confusion)
    ]
