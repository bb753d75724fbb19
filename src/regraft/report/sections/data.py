"""The rows of each split by class."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles

ORDER, TITLE = 30, "Data"

TEMPLATE = """
{{ m.table(["split", "rows"], splits, "Rows") }}
{% if classes %}{{ m.table(["label", "train", "val", "test"], classes, caption) }}{% endif %}
{% if notes %}<h3>What was said about them</h3>
<ul>{% for note in notes %}<li>{{ brief(note) }}</li>{% endfor %}</ul>{% endif %}
"""

LISTED = 50


def context(run: RunFiles) -> dict[str, Any] | str:
    names = ("train", "val", "test")
    counts: dict[str, Any] = {s: run.manifest.get(s, {}) for s in names}
    labels = run.result["classes"] if run.result["task"] == "classification" else []
    by_rows = sorted(labels, key=lambda c: counts["train"].get(c, 0))  # the rarest first
    few = f"; the {LISTED} rarest of {len(labels)}" if len(labels) > LISTED else ""
    return {
        "splits": [(s, run.result["rows"][s]) for s in names],
        "classes": [(c, *(counts[s].get(c, 0) for s in names)) for c in by_rows[:LISTED]],
        "caption": f"Rows by label, the rarest first{few}",
        "notes": run.result.get("notes", []),
    }
