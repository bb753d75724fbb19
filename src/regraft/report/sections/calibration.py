"""How far confidence is from accuracy, before and after the temperature that fits val."""

from __future__ import annotations

from typing import Any

from .. import plots
from ..reading import RunFiles

ORDER, TITLE = 70, "Calibration"

TEMPLATE = """
{{ m.table(["test", "as it is", "at the temperature", "gain, paired"], rows, caption) }}
{{ m.plot(plot, text) }}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    from ..render import estimate, signed

    c = run.result.get("calibration")
    if not c:
        return "Calibration takes a classification task and rows for val."

    def draw(axis: Any) -> None:
        axis.plot([0, 1], [0, 1], color=plots.INK, linewidth=0.8, linestyle=":")
        for i, when in enumerate(("before", "after")):
            bins = [b for b in c["reliability"][when] if b["rows"]]
            axis.plot(
                [b["confidence"] for b in bins],
                [b["accuracy"] for b in bins],
                marker=".",
                color=plots.COLORS[1 - i],
                label=when,
            )
        axis.set_xlabel("confidence")
        axis.set_ylabel("accuracy")
        axis.set_aspect("equal")
        plots.legend(axis)

    names = {"ece": "calibration error (ECE)", "log_loss": "log loss"}
    return {
        "rows": [
            (text, estimate(c["before"][key]), estimate(c["after"][key]), signed(c["gain"][key]))
            for key, text in names.items()
        ],
        "caption": f"Temperature {c['temperature']:.2f}, fitted on {c['fitted_on']} val rows (--calibrated applies it)",
        "text": "Reliability on test: accuracy against confidence in ten bins, before and after; on the "
        "diagonal, confidence is right.",
        "plot": plots.figure(draw, salt=f"{run.name} calibration", height=3.2),
    }
