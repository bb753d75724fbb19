"""Sets of classes, intervals around numbers, and accepted rows: what is guaranteed, and what test shows."""

from __future__ import annotations

from typing import Any

from ...runs import summary
from ...runs.guarantees import Abstention, Sets
from ...runs.summary import estimate, number
from .. import plots
from ..reading import RunFiles

ORDER, TITLE = 75, "Predictions with a guarantee"

TEMPLATE = """
{% if rows %}
{{ m.table(["", "value"], rows, caption) }}
{% endif %}
<ul>{% for line in lines %}<li>{{ line }}</li>
{% endfor %}</ul>
{% if plot %}
{{ m.plot(plot, "Risk and coverage on test: error among the most confident rows, by their share. The threshold was "
  "chosen on other rows.") }}
{% endif %}
"""

MAX_LISTED = 20  # numbers whose intervals are listed


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    s, a = run.result.sets, run.result.abstention
    if not s and not a:
        return (
            "Sets take one class a row, or numbers, and evaluate.coverage. There are none for several labels a row, "
            "and none in runs of older versions."
        )
    lines = [summary.abstention(a)] if a else []
    plot = risk_plot(a, f"{run.name} risk") if a and a.curve else None
    if not s or s.law is None or s.test is None:
        return {"rows": [], "lines": [s.refusal, *lines] if s else lines, "plot": plot}
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
    caption = f"{what} at {s.percent}; predict --sets writes them"
    return {"rows": rows, "caption": caption, "lines": [*limits(s), *lines], "plot": plot}


def risk_plot(a: Abstention, salt: str) -> Any:
    """Return the plot of error against the share of accepted rows, with the largest error as a line."""

    def draw(axis: Any) -> None:
        axis.plot([p.accepted for p in a.curve], [p.error for p in a.curve], marker=".", color=plots.COLORS[0])
        axis.axhline(a.max_error, color=plots.INK, linewidth=0.8, linestyle=":")
        if a.threshold is not None and a.accepted is not None:
            axis.axvline(a.accepted.value, color=plots.COLORS[1], linewidth=0.8)
        axis.set_xlim(0, 1.02)
        axis.set_xlabel("share of rows accepted")
        axis.set_ylabel("error among them")

    return plots.figure(draw, salt=salt)


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
