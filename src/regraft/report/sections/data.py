"""Rows of each split, by class."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles

ORDER, TITLE = 30, "Data"

TEMPLATE = """
{{ m.table(["split", "rows"], splits, "Rows") }}
{% if classes %}{{ m.table(["label", "train", "val", "test"], classes, caption) }}{% endif %}
{% if notes %}<h3>Notes</h3>
<ul>{% for note in notes %}<li>{{ brief(note) }}</li>{% endfor %}</ul>{% endif %}
"""

MAX_LISTED = 50  # classes


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    names, rows = ("train", "val", "test"), run.result.rows
    counts: dict[str, Any] = {s: run.manifest.get(s, {}) for s in names}
    labels = run.result.classes if run.result.targets == "class" else []
    by_rows = sorted(labels, key=lambda c: counts[names[0]].get(c, 0))  # the rarest of train first
    few = f"; the {MAX_LISTED} rarest of {len(labels)}" if len(labels) > MAX_LISTED else ""
    return {
        "splits": [("train", rows.train), ("val", rows.val), ("test", rows.test)],
        "classes": [(c, *(counts[s].get(c, 0) for s in names)) for c in by_rows[:MAX_LISTED]],
        "caption": f"Rows by label, the rarest first{few}",
        "notes": run.result.notes,
    }
