"""Files of a data folder that are no rows: links, pipes, folders without permission, other files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on

NEEDS: frozenset[Need] = frozenset()

HARMLESS_REASONS = ("not a picture", "a folder named like a picture")


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding for each reason to leave files out."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for where, why in context.left_out:
        by_reason[why].append(where)
    for why, places in sorted(by_reason.items()):
        yield from findings_on(
            "note" if why in HARMLESS_REASONS else "caution",
            f"files are left out, each {why}",
            places,
            context.count + len(context.left_out),
            "put a copy in place of each that should count, and remove the others",
        )
