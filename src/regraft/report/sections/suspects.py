"""Labels that are probably wrong, as pictures or texts."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles, picture_of

ORDER, TITLE = 85, "Suspected label errors"

TEMPLATE = """
<p class="note">{{ words }}</p>
{% call(e) m.gallery(rows) %}
labelled <b>{{ e.truth }}</b>{{ " (%.2f)" | format(e["probability of truth"]) }}, looks like
<b>{{ e.predicted }}</b>{{ " (%.2f)" | format(e.probability) }}<br>
<span class="note">{{ brief(e.where) }} ({{ e.split }})</span>
{% endcall %}
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    found = run.suspects
    if found is None:
        return "This run did not look for them: it was made before a fit did."
    if found["why not"]:
        return str(found["why not"])
    left = sum(run.result["rows"].values()) - found["of"]
    more = f" Not judged: {left:,}, whose class no other row, group or content has." if left else ""
    if not found["count"]:
        return f"None among {found['of']:,} rows of train, val and test.{more}"
    rows = [e | {"picture": picture_of(run, e["picture"])} for e in found["rows"]]
    few = f" The surest {len(rows)} are shown." if len(rows) < found["count"] else ""
    return {
        "rows": rows,
        "words": f"{found['count']:,} of {found['of']:,} rows of train, val and test, by a linear probe on the "
        f"source's features that saw none of the rows it judges (by folds).{few}{more} A suspicion: what is rare "
        f"and right is among them. Mend what is wrong, and keep what is merely hard.",
    }
