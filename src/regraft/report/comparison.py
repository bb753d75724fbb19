"""The comparison of several runs: paired differences on test, and the frontier of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..runs.summary import number, signed
from . import plots
from .reading import RunFiles, brief

if TYPE_CHECKING:
    from ..evidence.comparison import Compared

TITLE = "Comparison"

TEMPLATE = """
{{ m.table(["run", "held out", primary ~ " on test", "difference to " ~ first, "source"], rows, caption) }}
{% if plot %}{{ m.plot(plot, text) }}
{% else %}<p class="none">No frontier of all: it takes runs with source data.</p>{% endif %}
"""


def held_out(line: Compared) -> str:
    """Return the figure on the rows that chose, and which these are."""
    return "" if line.held_out is None else f"{number(line.held_out)} ({line.held_out_by})"


def difference(line: Compared) -> str:
    """Return the gain over the first run, and over how many seeds it is."""
    return signed(line.gain) + (f", over {line.over_seeds} seeds" if line.over_seeds else "")


def context(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the template's values. Raises UsageError for runs that cannot be compared."""
    from ..evidence.comparison import about, compare, ranked

    lines = compare([run.path for run in runs])
    frontiers = [(run, f) for run in runs if (f := run.result.frontier) and all(p.source for p in f.points)]

    def draw(axis: Any) -> None:
        for i, (run, f) in enumerate(frontiers):
            color = plots.COLORS[i % len(plots.COLORS)]
            at = [(p.source.after, p.figures[run.primary], p.alpha) for p in f.points if p.source]
            axis.plot([x for x, _, _ in at], [y for _, y, _ in at], marker=".", color=color, label=run.name)
            chosen = [(x, y) for x, y, alpha in at if alpha == f.alpha]
            axis.plot([x for x, _ in chosen], [y for _, y in chosen], "o", color=color, markersize=8)
        axis.set_xlabel("source, select rows")
        chosen_by = sorted({f.chosen_by for _, f in frontiers})
        axis.set_ylabel(printable(f"target, {lines[0].primary} by {' or '.join(chosen_by)}"))
        plots.legend(axis)

    return {
        "primary": lines[0].primary,
        "first": runs[0].name,
        "rows": [
            (runs[i].name, held_out(lines[i]), str(lines[i].test), difference(lines[i]), brief(lines[i].source))
            for i in ranked(lines)
        ],
        "caption": f"Ranked by the rows that chose (val, or folds). Test, n = {lines[0].test.n}; paired on the same "
        f"rows; the intervals of all differences together at 95 %. {about(lines)}",
        "text": "The frontier of each run, α from 0 to 1: target against source; large: the chosen point.",
        "plot": plots.figure(draw, salt="frontiers", height=3.2) if frontiers else None,
    }
