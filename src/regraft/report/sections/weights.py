"""Weights that were loaded, and each block: how it was trained, and how far it moved."""

from __future__ import annotations

from typing import Any

from ...runs.summary import number, weights
from ..reading import RunFiles, brief

ORDER, TITLE = 40, "Weights and blocks"

TEMPLATE = """
<p>{{ name }} ({{ licence }}): {{ words }}.</p>
{% if blocks %}
{{ m.table(["block", "parameters", "weights", "trains from epoch", "rate", "÷ scratch", "decay",
  "pulled to the source", "drift"], blocks, "Drift is ‖θ − θs‖ ÷ ‖θs‖ over kept weights of the saved model") }}
{% endif %}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    source = run.result.source
    blocks = [
        (
            b.name,
            f"{b.parameters:,}",
            b.state,
            "frozen" if b.first_epoch is None else b.first_epoch,
            f"{b.rate:.2g}",
            f"{b.over_scratch:.2g}",
            f"{b.weight_decay:g}",
            "yes" if b.anchored else "no",
            number(b.drift, digits=4),
        )
        for b in run.result.blocks
    ]
    return {"name": brief(source.name), "licence": source.licence, "words": weights(source), "blocks": blocks}
