"""Test rows that outnumber those of val."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need

NEEDS: frozenset[Need] = frozenset()


def check(seen: CheckContext) -> Iterator[Finding]:
    """Yield a note where test has more rows than val."""
    val, test = len(seen.splits["val"]), len(seen.splits["test"])
    if test > val:
        yield Finding("note", "rows of test beyond those of val", test - val, test, ("test",), "raise data.val")
