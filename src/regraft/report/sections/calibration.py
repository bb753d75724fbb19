"""Calibration: the distance of confidence from accuracy, before and after the temperature fitted on val."""

from __future__ import annotations

from typing import Any

from ...runs.summary import estimate, signed
from .. import plots
from ..reading import RunFiles

ORDER, TITLE = 70, "Calibration"

TEMPLATE = """
{{ m.table(["test", "as it is", "at the temperature", "gain, paired"], rows, caption) }}
{{ m.plot(plot, text) }}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    c = run.result.calibration
    if not c:
        return "Calibration takes a classification task and rows for val."

    def draw(axis: Any) -> None:
        axis.plot([0, 1], [0, 1], color=plots.INK, linewidth=0.8, linestyle=":")
        for i, (when, every) in enumerate((("before", c.reliability.before), ("after", c.reliability.after))):
            bins = [b for b in every if b.rows]
            axis.plot(
                [b.confidence for b in bins],
                [b.accuracy for b in bins],
                marker=".",
                color=plots.COLORS[1 - i],
                label=when,
            )
        axis.set_xlabel("confidence")
        axis.set_ylabel("accuracy")
        axis.set_aspect("equal")
        plots.legend(axis)

    metrics = {
        "calibration error (ECE)": (c.before.ece, c.after.ece, c.gain.ece),
        "log loss": (c.before.log_loss, c.after.log_loss, c.gain.log_loss),
    }
    return {
        "rows": [
            (name, estimate(before), estimate(after), signed(gain)) for name, (before, after, gain) in metrics.items()
        ],
        "caption": f"Temperature {c.temperature:.2f}, fitted on {c.fitted_on} val rows (--calibrated applies it)",
        "text": "Reliability on test: accuracy against confidence in ten bins, before and after; on the "
        "diagonal, confidence is right.",
        "plot": plots.figure(draw, salt=f"{run.name} calibration", height=3.2),
    }
