"""Forgetting of the source task, and the frontier between the start and the fit."""

from __future__ import annotations

from typing import Any

from ...errors import printable
from ...runs.estimates import Point
from ...runs.result_parts import SourceRetention
from ...runs.summary import frontier as frontier_words
from ...runs.summary import number
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
{{ m.table(header, points, "The points of the frontier; α = 0 is the start, 1 the fit. "
  ~ "The chosen one is the best of them, so its figure is too high") }}
{% else %}<p class="none">There is no frontier: there was nothing to choose between start and fit.</p>{% endif %}
"""


def prose(line: str) -> str:
    """Return a line of the summary for HTML: its parts are three blanks apart, and a browser shows one."""
    return line.replace("   ", "; ")


def row(p: Point, primary: str) -> list[str]:
    """Return the cells of a point in the table."""
    kept = (p.source.after, p.source.ratio, p.source.low) if p.source else ()
    return [f"{p.alpha:g}", *map(number, (p.figures[primary], p.loss, *kept))]


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    r = run.result
    if r.source.nothing_kept:
        return "Nothing was kept of a source, so there is nothing to forget."
    kept, f = r.retention, r.frontier
    forgotten = kept.most_forgotten if isinstance(kept, SourceRetention) else []
    values: dict[str, Any] = {
        "words": prose(retention_words(kept, len(r.seeds))) if kept else "Forgetting was not measured.",
        "forgotten": [(c.name, c.rows, number(c.before), number(c.after)) for c in forgotten[:10]],
        "plot": None,
    }
    if not f:
        return values
    points = f.points
    kept_at = [p.source for p in points if p.source]
    has_source = len(kept_at) == len(points)

    def draw(axes: Any) -> None:
        left, right = axes if has_source else (axes, None)
        alphas = [p.alpha for p in points]
        left.plot(alphas, [p.figures[run.primary] for p in points], marker=".", color=plots.COLORS[0])
        left.set_title(printable(f"target: {run.primary} by {f.chosen_by}"))
        if right is not None:
            right.plot(alphas, [kept.after for kept in kept_at], marker=".", color=plots.COLORS[1])
            right.set_title("source: on its select rows")
        for axis in (left, right) if right is not None else (left,):
            axis.axvline(f.alpha, color=plots.INK, linewidth=0.8, linestyle=":")
            axis.set_xlabel("α")

    header = ["α", run.primary, "loss"] + (["source", "kept", "at least"] if has_source else [])
    return values | {
        "line": prose(frontier_words(r, f)),
        "plot": plots.figure(draw, 2 if has_source else 1, salt=f"{run.name} frontier"),
        "text": "Points between start and fit in weight space; dotted: the chosen point.",
        "header": header,
        "points": [row(p, run.primary)[: len(header)] for p in points],
    }
