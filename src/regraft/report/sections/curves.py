"""Curves of the loss terms and of val, by epoch."""

from __future__ import annotations

from typing import Any

from ...errors import printable
from ...runs.side_files import HistoryLine
from .. import plots
from ..reading import RunFiles

ORDER, TITLE = 50, "Curves"

TEMPLATE = """
{{ m.plot(plot, text) }}
{% if rates %}{{ m.table(["block", "last learning rate"], rates, "Learning rates at the end") }}{% endif %}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    by_seed: dict[int, list[HistoryLine]] = {}
    for line in run.history:
        by_seed.setdefault(line.seed, []).append(line)
    if not any(line.terms for line in run.history):
        return "Nothing was fitted: there are no epochs."
    terms = sorted({t for line in run.history for t in line.terms})
    has_val = any(line.val for line in run.history)

    def draw(axes: Any) -> None:
        left, right = axes if has_val else (axes, None)
        for s, lines in enumerate(by_seed.values()):
            how = {"alpha": 1 if s == 0 else 0.35, "marker": "."}  # a single epoch has no line
            for i, term in enumerate(terms):
                values = {line.epoch: line.terms[term] for line in lines if term in line.terms}
                label = printable(term) if s == 0 else None
                left.plot(
                    list(values), list(values.values()), color=plots.COLORS[i % len(plots.COLORS)], label=label, **how
                )
            if right is not None:
                values = {line.epoch: line.val[run.primary] for line in lines if line.val}
                right.plot(list(values), list(values.values()), color=plots.COLORS[0], **how)
                if s == 0:
                    best = max((line.epoch for line in lines if line.val and line.best), default=0)
                    right.axvline(best, color=plots.INK, linewidth=0.8, linestyle=":")
        left.set_xlabel("epoch")
        left.set_title("training loss by term")
        plots.legend(left)
        if right is not None:
            right.set_xlabel("epoch")
            right.set_title(f"val {run.primary}")

    rates: dict[str, float] = next((line.rates for line in reversed(run.history) if line.rates), {})
    seeds = f"; paler: the other {len(by_seed) - 1} seeds" if len(by_seed) > 1 else ""
    val = "; dotted: the best epoch. Epoch 0 is the starting point" if has_val else ""
    return {
        "plot": plots.figure(draw, 2 if has_val else 1, salt=f"{run.name} curves"),
        "text": f"Mean of each loss term over an epoch{' and val' if has_val else ''}{val}{seeds}.",
        "rates": [(name, f"{rate:.2g}") for name, rate in rates.items()],
    }
