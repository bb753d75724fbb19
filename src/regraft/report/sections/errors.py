"""The worst errors on test, as pictures or texts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ..reading import RunFiles

ORDER, TITLE = 80, "The worst errors on test"
TEMPLATE = """
<p class="note">{{ words }}</p>
<ul class="gallery{{ " texts" if texts }}">
{% for e in errors %}
<li>
{% if e.picture %}<img src="{{ e.picture }}" alt="a test picture of {{ e.truth }}">
{% elif e.text %}<blockquote>{{ e.text }}</blockquote>{% endif %}
<b>{{ e.predicted }}</b>{{ " (%.2f)" | format(e.probability) if e.probability is not none }}, labelled
<b>{{ e.truth }}</b><br><span class="note">{{ brief(e.where) }}</span></li>
{% endfor %}
</ul>
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    if not (run.path / "gallery" / "gallery.json").is_file():
        return "This run keeps no gallery: it was made before there were any."
    if not run.gallery:
        return "There are none: every test row is right."
    errors = []
    for entry in run.gallery:
        # by name alone: a run from elsewhere must not put files of this machine into its report
        file = run.path / "gallery" / Path(entry["picture"]).name if entry["picture"] else None
        shown = file is not None and file.is_file() and not file.is_symlink()
        data = base64.b64encode(file.read_bytes()).decode() if file is not None and shown else ""
        errors.append(entry | {"picture": f"data:image/jpeg;base64,{data}" if data else ""})
    kind = (
        "furthest from the label" if run.result["task"] == "regression" else "most sure, and wrong"
    )
    return {
        "errors": errors,
        "texts": not any(e["picture"] for e in errors),
        "words": f"Of the saved model, {kind} first. A label may be what is wrong: look before you blame the model.",
    }
