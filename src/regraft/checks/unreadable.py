"""Inputs that cannot be used: pictures that do not decode whole or are too large, empty texts."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need

NEEDS: frozenset[Need] = frozenset()


def check(seen: CheckContext) -> Iterator[Finding]:
    if seen.unreadable:
        what = f"{'picture' if seen.kind == 'image' else seen.kind}s cannot be used"
        yield Finding(
            "problem",
            what,
            len(seen.unreadable),
            seen.count + len(seen.unreadable),
            tuple(f"{where} ({why})" for where, why in seen.unreadable),
            "mend or remove them; fit stops at them, or leaves them out with --on-bad skip",
        )
