"""Worst errors on test, as pictures or texts."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles, picture_of

ORDER, TITLE = 80, "The worst errors on test"

TEMPLATE = """
<p class="note">{{ words }}</p>
{% call(e) m.gallery(errors) %}
<b>{{ e.predicted }}</b>{{ " (%.2f)" | format(e.probability) if e.probability is not none }}, labelled
<b>{{ e.truth }}</b><br><span class="note">{{ brief(e.where) }}</span>
{% endcall %}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    if run.gallery is None:
        return "This run has no gallery: an older version of regraft made it."
    if not run.gallery:
        return "There are none: every test row is right."
    errors = [e.model_copy(update={"picture": picture_of(run, e.picture)}) for e in run.gallery]
    kind = "furthest from the label" if run.result.targets == "numbers" else "the most confident"
    return {
        "errors": errors,
        "words": f"Errors of the saved model, {kind} first. A label may be wrong: look at it before the model.",
    }
