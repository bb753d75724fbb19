"""Rows that are nearly the same: pictures resized, encoded again or mirrored; texts with small changes.

Small changes of a text are its spaces, case, punctuation or a word. ``exact_duplicates`` reports equal rows.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from ..data.columns import concatenated
from ..data.types import Example
from . import CheckContext, Finding, Need, findings_on
from ._near import find_pairs
from ._rows import SPLIT_PAIRS, distinct_rows, row_name

NEEDS: frozenset[Need] = frozenset()


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield findings on near duplicates across splits and within them."""
    parts = distinct_rows(context)
    rows = concatenated([rows for _, rows in parts])
    ends = list(accumulate(len(rows) for _, rows in parts))

    def row_at(position: int) -> tuple[str, Example]:
        return parts[bisect(ends, position)][0], rows[position]

    near, incomplete = find_pairs(rows, context.kind, context.features)
    across: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    within: dict[int, str] = {}
    for pair in near:
        (split_a, a), (split_b, b) = row_at(pair.first), row_at(pair.second)  # split_a is not after split_b
        if a.content == b.content:
            continue
        differ = "; labels differ" if a.cells != b.cells and context.names(a) else ""
        text = f"{row_name(split_b, b)} ~ {row_name(split_a, a)} ({pair.reason}{differ})"
        if split_a == split_b:
            within.setdefault(pair.second, text)
        else:
            across[split_b, split_a].setdefault(pair.second, text)
    at_least = ", at least" if incomplete else ""
    verb = "looks" if context.kind == "image" else "reads"
    for later, earlier in SPLIT_PAIRS:
        yield from findings_on(
            "caution",
            f"rows of {later} have one in {earlier} that {verb} the same{at_least}",
            tuple(across[later, earlier].values()),
            len(context.splits.get(later, ())),
            f"look at them; remove duplicates from {earlier}, or put rows that belong together in one group "
            "(data.group)",
        )
    yield from findings_on(
        "note",
        f"rows have one in their own split that {verb} the same{at_least}",
        tuple(within.values()),
        context.count,
        "look at them; put rows that show the same thing in one group (data.group)",
    )
