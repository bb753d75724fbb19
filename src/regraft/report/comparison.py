"""Several runs side by side: on test with paired differences, and the frontier of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import printable
from . import plots
from .reading import RunFiles, brief

TITLE = "Comparison"

TEMPLATE = """
{{ m.table(["run", primary ~ " on test", "difference to the first", "source"], rows, caption) }}
{% if plot %}{{ m.plot(plot, text) }}
{% else %}<p class="none">No frontier of all: it takes runs with source data.</p>{% endif %}
"""


def context(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Raises UsageError for runs that cannot be compared."""
    from ..evidence.comparison import compare

    lines = compare([run.path for run in runs])
    walked = [
        run for run in runs if run.result["frontier"] and all(p.get("source") for p in run.result["frontier"]["points"])
    ]

    def draw(axis: Any) -> None:
        for i, run in enumerate(walked):
            f, color = run.result["frontier"], plots.COLORS[i % len(plots.COLORS)]
            at = [(p["source"]["after"], p["figures"][run.primary], p["alpha"]) for p in f["points"]]
            axis.plot([x for x, _, _ in at], [y for _, y, _ in at], marker=".", color=color, label=run.name)
            chosen = [(x, y) for x, y, alpha in at if alpha == f["alpha"]]
            axis.plot([x for x, _ in chosen], [y for _, y in chosen], "o", color=color, markersize=8)
        axis.set_xlabel("source, select rows")
        chosen_by = sorted({run.result["frontier"]["chosen_by"] for run in walked})
        axis.set_ylabel(printable(f"target, {lines[0].primary} by {' or '.join(chosen_by)}"))
        plots.legend(axis)

    return {
        "primary": lines[0].primary,
        "rows": [
            (
                run.name,
                str(line.test),
                "–" if line.gain is None else f"{line.gain.value:+.3f} [{line.gain.low:+.3f}, {line.gain.high:+.3f}]",
                brief(line.source),
            )
            for run, line in zip(runs, lines, strict=True)
        ],
        "caption": f"Test, n = {lines[0].test.n}; paired on the same rows; about these models, not the methods",
        "text": "The frontier of each run, α from 0 to 1: target against source; large: the chosen point.",
        "plot": plots.figure(draw, salt="frontiers", height=3.2) if walked else None,
    }
