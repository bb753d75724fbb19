"""How many rows each split has."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles

ORDER, TITLE = 95, "Row counts"

TEMPLATE = "<p>Rows in all: {{ rows }}.</p>"


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return what the template shows."""
    rows = run.result.rows
    return {"rows": rows.train + rows.val + rows.test}
