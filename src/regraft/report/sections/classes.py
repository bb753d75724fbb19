"""Every class: how often it is found, how often its name is right, what it is taken for."""

from __future__ import annotations

from typing import Any

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
MATRIX, LISTED = 25, 200  # classes up to which the matrix is shown, and a table of all


def context(run: RunFiles) -> dict[str, Any] | str:
    from ...intervals import wilson

    confusion, classes = run.result["confusion"], run.result["classes"]
    if not confusion:
        return f"A {run.result['task']} task has no table of classes."
    rows = []
    for i, name in enumerate(classes):
        found, support = confusion[i][i], sum(confusion[i])
        said = sum(row[i] for row in confusion)
        others = sorted(((n, j) for j, n in enumerate(confusion[i]) if j != i and n), reverse=True)
        taken = f"{classes[others[0][1]]} ({others[0][0]})" if others else ""
        recall, precision = (
            f"{found / n:.3f} [{low:.3f}, {high:.3f}]" if n else "–"
            for n in (support, said)
            for low, high in [wilson(found, n) if n else (0.0, 1.0)]
        )
        rows.append(
            (found / support if support else 2.0, (name, support, recall, precision, taken))
        )
    rows.sort(key=lambda row: row[0])  # the weakest first
    shown = [row for _, row in rows[:LISTED]]
    matrix = [
        [
            {"rows": n, "color": f"{RIGHT if i == j else WRONG} / {0.6 * n / max(1, sum(row)):.2f}"}
            for j, n in enumerate(row)
        ]
        for i, row in enumerate(confusion)
    ]
    few = f"; the {LISTED} weakest of {len(rows)}" if len(rows) > LISTED else ""
    return {
        "rows": shown,
        "classes": classes,
        "caption": f"By class, the weakest first{few}; Wilson intervals, each class by itself",
        "matrix": matrix if len(classes) <= MATRIX else [],
    }
