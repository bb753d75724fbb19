"""Sets of classes, or intervals around numbers: what they are to hold, and what they hold on test."""

from __future__ import annotations

from typing import Any

from ...runs.result_parts import Sets
from ...runs.summary import estimate, number
from ..reading import RunFiles

ORDER, TITLE = 75, "Predictions with a guarantee"

TEMPLATE = """
{{ m.table(["", "value"], rows, caption) }}
<ul>{% for line in lines %}<li>{{ line }}</li>
{% endfor %}</ul>
"""

MAX_LISTED = 20  # numbers whose intervals are listed


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    s = run.result.sets
    if not s:
        return (
            "Sets take one class a row, or numbers, and evaluate.coverage. There are none for several labels a row, "
            "and none in runs of older versions."
        )
    if s.law is None or s.test is None:
        return f"There are {s.refusal}."
    rows = [
        (f"{which(s)} rows behind the bound", str(s.rows)),
        (
            "coverage of new rows, expected",
            f"{number(s.law.value)}, middle 95 % {number(s.law.low)} to {number(s.law.high)}",
        ),
        ("coverage on test", estimate(s.test)),
    ]
    if s.half_widths is None:
        rows.append(("classes in a set on test, mean", estimate(s.size)))
        rows.append(("empty sets on test", estimate(s.empty)))
    names = run.result.classes[:MAX_LISTED]
    rows += [(name, f"± {w:.4g}") for name, w in zip(names, (s.half_widths or ())[:MAX_LISTED], strict=False)]
    what = "Sets" if s.half_widths is None else "Intervals"
    return {"rows": rows, "caption": f"{what} at {s.percent}; predict --sets writes them", "lines": list(limits(s))}


def which(s: Sets) -> str:
    """Return which held-out rows the bound is from."""
    return "val" if s.by == "val" else "out-of-fold"


def limits(s: Sets) -> list[str]:
    """Return the limits of the guarantee, a sentence each."""
    found = [
        f"It is about rows like those of {'val' if s.by == 'val' else 'train'}, on average over all of them: not "
        "about each class, and not about a single row."
    ]
    if s.by == "val":
        found.append(
            "Val also chose the epoch, α and the temperature. That costs little coverage, but the law leaves it out."
        )
    else:
        found.append(
            "Out-of-fold rows were scored by the folds' models, not by the saved one: the guarantee is approximate."
        )
    if s.grouped:
        found.append("These rows come in groups. The law counts what they are worth, which is an approximation.")
    if s.half_widths is not None and len(s.half_widths) > 1:
        found.append("The intervals of a row hold all of its numbers together.")
    if s.empty is not None and s.empty.value > 0:
        found.append(
            "In an empty set no class is probable enough: the model is unsure of that row. A higher "
            "evaluate.coverage makes fewer of them."
        )
    return found
