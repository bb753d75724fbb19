"""Calibration: the distance of confidence from accuracy, before and after the temperature fitted on held-out rows."""

from __future__ import annotations

from typing import Any

from ...runs.summary import estimate, number, signed
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

    fitted = f"{c.fitted_on} {'val' if c.fitted_by == 'val' else 'out-of-fold'} rows"
    applied = "test shows that it makes the log loss worse: it is not used" if c.harmful else "--calibrated applies it"
    error, gained = "calibration error (ECE)", number(c.gain.ece.value)
    rows = [(error, number(c.before.ece.value), number(c.after.ece.value), gained)]
    if c.if_calibrated:
        expected = c.if_calibrated
        rows.append((f"{error} of a calibrated model", estimate(expected.before), estimate(expected.after), ""))
    rows.append(("log loss", estimate(c.before.log_loss), estimate(c.after.log_loss), signed(c.gain.log_loss)))
    return {
        "rows": rows,
        "caption": f"Temperature {c.temperature:.2f}, fitted on {fitted} ({applied}). ECE of few rows "
        "is above 0 for a calibrated model too; its row says what is to be expected, with the middle 95 %",
        "text": "Reliability on test: accuracy against confidence in 15 bins, before and after; on the "
        "diagonal, confidence is right.",
        "plot": plots.figure(draw, salt=f"{run.name} calibration", height=3.2),
    }
