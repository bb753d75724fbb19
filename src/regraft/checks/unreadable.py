"""Inputs that cannot be used: pictures that do not decode or are too large, empty texts."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on

NEEDS: frozenset[Need] = frozenset()


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on inputs that cannot be used."""
    yield from findings_on(
        "problem",
        f"{'picture' if context.kind == 'image' else context.kind}s cannot be used",
        [f"{where} ({why})" for where, why in context.unreadable],
        context.count + len(context.unreadable),
        "repair or remove them; fit stops at them, or leaves them out with --on-bad skip",
    )
