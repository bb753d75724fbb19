"""Splits of few rows."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need

NEEDS: frozenset[Need] = frozenset()

FEW = 100  # rows


def check(seen: CheckContext) -> Iterator[Finding]:
    """Yield a note for train where it has few rows."""
    rows = len(seen.splits["train"])
    if 20 < rows < FEW:
        yield Finding("note", "rows of train are few", rows, seen.count, ("train",), "label more")
