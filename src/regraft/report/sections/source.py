"""What the source task lost, and the line between the start and the fit."""

from __future__ import annotations

from typing import Any

from ...errors import printable
from ...runs.summary import frontier as frontier_words
from ...runs.summary import retention as retention_words
from .. import plots
from ..reading import RunFiles

ORDER, TITLE = 90, "The source task and the frontier"

TEMPLATE = """
<p>{{ words }}</p>
{% if forgotten %}
{{ m.table(["source class", "rows", "before", "after"], forgotten,
  "Most forgotten, of classes with 10 source rows or more") }}
{% endif %}
{% if plot %}
<p>{{ line }}</p>
{{ m.plot(plot, text) }}
{{ m.table(header, points, "The points of the frontier; α = 0 is the start, 1 the fit") }}
{% else %}<p class="none">There was nothing to choose between start and fit, so no frontier.</p>{% endif %}
"""


def prose(line: str) -> str:
    """A line of the summary, whose parts stand three blanks apart; a browser would draw one."""
    return line.replace("   ", "; ")


def context(run: RunFiles) -> dict[str, Any] | str:
    from ..render import number

    r = run.result
    if r["source"]["nothing_kept"]:
        return "Nothing was kept of a source, so there is nothing to forget."
    kept, f = r["retention"], r["frontier"]
    found: dict[str, Any] = {
        "words": prose(retention_words(kept)) if kept else "What the source task lost was not looked at.",
        "forgotten": [
            (c["class"], c["rows"], number(c["before"]), number(c["after"]))
            for c in (kept or {}).get("most forgotten", [])[:10]
        ],
        "plot": None,
    }
    if not f:
        return found
    points = f["points"]
    has_source = all(p.get("source") for p in points)

    def draw(axes: Any) -> None:
        left, right = axes if has_source else (axes, None)
        alphas = [p["alpha"] for p in points]
        left.plot(alphas, [p["figures"][run.primary] for p in points], marker=".", color=plots.COLORS[0])
        left.set_title(printable(f"target: {run.primary} by {f['chosen_by']}"))
        if right is not None:
            right.plot(alphas, [p["source"]["after"] for p in points], marker=".", color=plots.COLORS[1])
            right.set_title("source: on its select rows")
        for axis in (left, right) if right is not None else (left,):
            axis.axvline(f["alpha"], color=plots.INK, linewidth=0.8, linestyle=":")
            axis.set_xlabel("α")

    header = ["α", run.primary, "loss"] + (["source", "kept", "at least"] if has_source else [])
    return found | {
        "line": prose(frontier_words(r)),
        "plot": plots.figure(draw, 2 if has_source else 1, salt=f"{run.name} frontier"),
        "text": "Points between start and fit in weight space; dotted: the one that was chosen.",
        "header": header,
        "points": [
            (
                f"{p['alpha']:g}",
                number(p["figures"][run.primary]),
                number(p["figures"]["loss"]),
                *((number(p["source"][k]) for k in ("after", "ratio", "low")) if has_source else ()),
            )
            for p in points
        ],
    }
