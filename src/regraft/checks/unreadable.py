"""Inputs that cannot be used: pictures that do not decode or are too large, empty texts."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need

NEEDS: frozenset[Need] = frozenset()


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on inputs that cannot be used."""
    if context.unreadable:
        what = f"{'picture' if context.kind == 'image' else context.kind}s cannot be used"
        yield Finding(
            "problem",
            what,
            len(context.unreadable),
            context.count + len(context.unreadable),
            tuple(f"{where} ({why})" for where, why in context.unreadable),
            "repair or remove them; fit stops at them, or leaves them out with --on-bad skip",
        )
