"""Figures by the values of columns, and each value compared with all other rows."""

from __future__ import annotations

from typing import Any

from ...runs.slices import Slice, Slices
from ...runs.summary import estimate, few_rows, number, signed
from ..reading import RunFiles

ORDER, TITLE = 65, "Slices"

TEMPLATE = """
<p>{{ words }}</p>
<p class="note">The saved model on test. A difference is the value's {{ primary }} less that of all other rows, and
positive is better. The intervals of all {{ comparisons }} differences hold together at 95 %; those of the figures
are each by itself.</p>
{% for t in tables %}
{{ m.table(t.header, t.rows, t.caption) }}
{% endfor %}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    found = run.result.slices
    if found is None:
        return "No column was named: regraft fit TABLE --slice COLUMN shows figures by its values."
    worse = [f"{column} {value.name}" for column, value in found.worse()]
    return {
        "words": f"Called worse than all other rows: {', '.join(worse)}."
        if worse
        else "No group is shown to be worse.",
        "primary": found.primary,
        "comparisons": found.comparisons,
        "tables": [table(found, one) for one in found.columns],
    }


def table(found: Slices, one: Slice) -> dict[str, Any]:
    """Return the table of one column; metrics beside the primary one have no interval there."""
    part = one.values[0] if one.values else one.few
    others = [name for name in part.metrics if name != found.primary] if part else []
    rows = [
        (
            value.name,
            value.n,
            estimate(value.metrics[found.primary]),
            "not compared" if value.difference is None else signed(value.difference) + " worse" * value.worse,
            *(number(value.metrics[name].value if name in value.metrics else None) for name in others),
        )
        for value in one.values
    ]
    if few := one.few:
        figures = (number(few.metrics[name].value if name in few.metrics else None) for name in others)
        rows.append((few_rows(found, few), few.n, estimate(few.metrics[found.primary]), "not compared", *figures))
    return {
        "header": [one.column, "rows", found.primary, "difference", *others],
        "rows": rows,
        "caption": f"By {one.column}, the worst first",
    }
