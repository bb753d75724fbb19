"""Cautions that follow from the figures."""

from __future__ import annotations

from typing import Any

from ...runs.answers import MIN_SEEDS, far_seeds
from ...runs.confusion import rows_of
from ...runs.result_parts import SourceRetention
from ..reading import RunFiles

ORDER, TITLE = 20, "What to be careful about"

TEMPLATE = """
<ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}
</ul>
"""

MIN_ROWS, MIN_ROWS_PER_CLASS = 100, 15  # of test

MAX_HALF_WIDTH = 0.1  # of an interval on [0, 1]


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    lines = list(cautions(run))
    return {"lines": lines} if lines else "Nothing stands out."


def cautions(run: RunFiles) -> list[str]:
    """Return a sentence for each reason to trust the figures less."""
    r, lines = run.result, []
    n, primary = r.rows.test, r.test[run.primary]
    if n < MIN_ROWS:
        lines.append(f"Test has {n} rows: a few of them move its figures by points.")
    low, high = primary.low, primary.high
    if 0 <= low <= high <= 1 and high - low > 2 * MAX_HALF_WIDTH:
        lines.append(f"The interval of {run.primary} is {high - low:.2f} wide.")
    if r.confusion:
        supports = [sum(row.values()) for row in rows_of(r.confusion, len(r.classes))]
        rare = [f"{name} ({n})" for name, n in zip(r.classes, supports, strict=True) if n < MIN_ROWS_PER_CLASS]
        if rare:
            more = f" and {len(rare) - 8} more" if len(rare) > 8 else ""
            lines.append(
                f"Fewer than {MIN_ROWS_PER_CLASS} test rows in {len(rare)} of {len(r.classes)} classes, "
                f"so the figures of each are uncertain: {', '.join(rare[:8])}{more}."
            )
    if r.probe and r.probe.rows < r.probe.of and not r.probe.passes:
        lines.append(
            f"The linear probe was fitted on {r.probe.rows:,} of {r.probe.of:,} training rows: "
            "a gain over it is too large."
        )
    lines += far_seeds(r)
    if len(r.seeds) < MIN_SEEDS:
        lines.append(
            f"{len(r.seeds)} seed{'s' if len(r.seeds) > 1 else ''}: the figures are about "
            f"these models, and another seed gives other figures. Three seeds and scratch give a verdict."
        )
    if r.test_opened != 1:
        times = "an unknown number of" if r.test_opened == 0 else str(r.test_opened)
        lines.append(f"Test was opened {times} times: later choices may have been made on it.")
    if not r.rows.val:
        lines.append("There was no val: choices were made by cross-validation over train, or not at all.")
    if r.retention and not isinstance(r.retention, SourceRetention):
        lines.append("Forgetting is not measured, only a proxy of it: give --source-data.")
    if isinstance(r.retention, SourceRetention) and not r.retention.claim:
        lines.append(
            f"Forgetting is on {r.retention.before.n} source rows, under {r.retention.claim_from}: no claim is made."
        )
    if r.fit.fitted and r.rows.val and r.fit.best_epoch == 0:
        lines.append("No epoch beat the starting point on val: the model is the linear probe.")
    return lines
