"""Suspected label errors, as pictures or texts."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles, picture_of

ORDER, TITLE = 85, "Suspected label errors"

TEMPLATE = """
<p class="note">{{ words }}</p>
{% call(e) m.gallery(rows) %}
labelled <b>{{ e.truth }}</b>{{ " (%.2f)" | format(e.of_truth) }}, looks like
<b>{{ e.predicted }}</b>{{ " (%.2f)" | format(e.probability) }}<br>
<span class="note">{{ brief(e.where) }} ({{ e.split }})</span>
{% endcall %}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    suspects = run.suspects
    if suspects is None:
        return "This run did not judge its labels: an older version of regraft made it."
    if suspects.why_not:
        return suspects.why_not
    counts = run.result.rows
    left = counts.train + counts.val + counts.test - suspects.of
    more = f" Not judged: {left:,}, whose class no other row, group or content has." if left else ""
    if not suspects.count:
        return f"None among {suspects.of:,} rows of train, val and test.{more}"
    rows = [e.model_copy(update={"picture": picture_of(run, e.picture)}) for e in suspects.rows]
    few = f" The most suspicious {len(rows)} are shown." if len(rows) < suspects.count else ""
    return {
        "rows": rows,
        "words": f"{suspects.count:,} of {suspects.of:,} rows of train, val and test, by a linear probe on the "
        f"source's features that was not fitted on the rows it judges (by folds).{few}{more} These are suspicions: "
        f"rare rows with a right label are among them. Correct wrong labels, and leave rows that are only hard.",
    }
