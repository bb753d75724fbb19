"""What to be careful about, from the figures themselves."""

from __future__ import annotations

from typing import Any

from ...runs.confusion import rows_of
from ..reading import RunFiles

ORDER, TITLE = 20, "What to be careful about"

TEMPLATE = """
<ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}
</ul>
"""

FEW_ROWS, FEW_OF_A_CLASS, WIDE = 100, 15, 0.1


def context(run: RunFiles) -> dict[str, Any] | str:
    lines = list(cautions(run))
    return {"lines": lines} if lines else "Nothing stands out."


def cautions(run: RunFiles) -> list[str]:
    r, found = run.result, []
    n, primary = r["rows"]["test"], r["test"][run.primary]
    if n < FEW_ROWS:
        found.append(f"Test has {n} rows: a figure on it moves by points with a handful of them.")
    low, high = primary["low"], primary["high"]
    if low is not None and high is not None and 0 <= low <= high <= 1 and high - low > 2 * WIDE:
        found.append(f"The interval of {run.primary} is {high - low:.2f} wide.")
    if r["confusion"]:
        supports = [sum(row.values()) for row in rows_of(r["confusion"], len(r["classes"]))]
        rare = [f"{name} ({n})" for name, n in zip(r["classes"], supports, strict=True) if n < FEW_OF_A_CLASS]
        if rare:
            more = f" and {len(rare) - 8} more" if len(rare) > 8 else ""
            found.append(
                f"Fewer than {FEW_OF_A_CLASS} test rows in {len(rare)} of {len(r['classes'])} classes, "
                f"so little is known of each: {', '.join(rare[:8])}{more}."
            )
    probe = r.get("probe") or {}
    if probe.get("rows", 0) < probe.get("of", 0) and not probe.get("passes"):
        found.append(
            f"The linear probe saw {probe['rows']:,} of {probe['of']:,} training rows, so a gain over it is too large."
        )
    if len(r["seeds"]) < 3:
        found.append(
            f"{len(r['seeds'])} seed{'s' if len(r['seeds']) > 1 else ''}: the figures are about "
            f"these models; another seed gives others. Three seeds and scratch give a verdict."
        )
    if r["test_opened"] != 1:
        times = "an unknown number of" if r["test_opened"] == 0 else str(r["test_opened"])
        found.append(f"Test was opened {times} times: what was chosen after the first look has seen it.")
    if not r["rows"]["val"]:
        found.append("There was no val: choices were made by cross-validation over train, or not at all.")
    if r["retention"] and r["retention"]["kind"] != "source data":
        found.append("What the source task lost is not measured, only a proxy: give --source-data.")
    elif r["retention"] and not r["retention"]["claim"]:
        found.append(
            f"Forgetting is on {r['retention']['before']['n']} source rows, under "
            f"{r['retention']['claim from']}: no claim is made."
        )
    if r["fit"]["fitted"] and r["rows"]["val"] and r["fit"]["best_epoch"] == 0:
        found.append("No epoch beat the starting point on val: the model is the linear probe.")
    return found
