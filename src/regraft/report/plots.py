"""Plots as inline SVG in the page's own colours: axes and words are currentColor."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from markupsafe import Markup

from ..errors import printable
from ..runs.estimates import Estimate

INK = "#010203"  # stands for currentColor until the SVG is written

DRAWING = Lock()  # matplotlib draws one figure at a time

COLORS = ("#2f7ed8", "#d9632a", "#2e9d64", "#a45bd1", "#c2a11b", "#d1447f", "#4aa3b5", "#8a8a8a")


def figure(draw: Callable[[Any], None], panels: int = 1, *, salt: str, height: float = 2.6) -> Markup:
    """Return an ``<svg>`` for each panel that ``draw(axes)`` fills, so that they wrap on a phone."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.size": 9.0,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with DRAWING, mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib lacks: the reader's browser has it
        figures = [Figure(figsize=(4.4, height), layout="constrained") for _ in range(panels)]
        axes = [fig.subplots() for fig in figures]
        draw(axes if panels > 1 else axes[0])  # the values were read before
        return Markup("\n").join(Markup(as_svg(fig)) for fig in figures)


def as_svg(figure: Any) -> str:
    """Return the ``<svg>`` alone, without XML head and date."""
    out = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=none)
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").replace("sans-serif", "inherit")


def legend(axis: Any) -> None:
    """Draw the legend of an axis that has labels."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, labelcolor=INK)


def intervals(rows: Sequence[tuple[str, Estimate]], label: str, salt: str) -> Markup:
    """Return a plot of figures with their intervals, one below the other."""

    def draw(axis: Any) -> None:
        for i, (_, e) in enumerate(rows):
            if e.has_interval:
                axis.plot([e.low, e.high], [-i, -i], color=COLORS[0], linewidth=2)
            axis.plot([e.value], [-i], "o", color=COLORS[0], markersize=5)
        axis.set_yticks([-i for i in range(len(rows))], [printable(name) for name, _ in rows])
        axis.set_ylim(-len(rows) + 0.4, 0.6)
        axis.set_xlabel(label)

    return figure(draw, salt=salt, height=0.8 + 0.32 * len(rows))
