"""Findings of the checks of the data, made before the run."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles, brief

ORDER, TITLE = 35, "Findings in the data"

TEMPLATE = """
{{ m.table(["", "what", "rows", "remedy"], rows, caption, 4) }}
{% for what, examples, more in details %}
<details><summary>{{ what }}</summary>
<ul>{% for example in examples %}<li>{{ example }}</li>{% endfor %}
{% if more %}<li>and {{ more }} more</li>{% endif %}</ul></details>
{% endfor %}
"""

MAX_EXAMPLES = 20  # of a finding


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    if run.findings is None:
        return "This run has no check.json, and so no findings."
    if not run.findings:
        return "The checks found nothing."
    return {
        "rows": [(f.severity, f.what, f"{f.count:,} of {f.of:,}", f.remedy) for f in run.findings],
        "caption": "Problems first, then cautions, then notes",
        "details": [
            (f.what, [brief(e) for e in f.examples[:MAX_EXAMPLES]], max(0, f.count - MAX_EXAMPLES))
            for f in run.findings
        ],
    }
