"""Rows that are nearly the same: pictures resized, encoded anew or mirrored, texts with small changes.

Spaces, case and signs of a text, or a word of it. Exact duplicates are another check's.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from ..data.columns import concatenated
from ..data.types import Example
from . import CheckContext, Finding, Need
from ._near import pairs
from ._rows import LATER, distinct, place

NEEDS: frozenset[Need] = frozenset()


def check(seen: CheckContext) -> Iterator[Finding]:
    parts = distinct(seen)  # of equal rows one in each split
    rows = concatenated([rows for _, rows in parts])
    ends = list(accumulate(len(rows) for _, rows in parts))

    def at(position: int) -> tuple[str, Example]:
        return parts[bisect(ends, position)][0], rows[position]

    found, more = pairs(rows, seen.kind, seen.features)
    across: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    within: dict[int, str] = {}
    for pair in found:
        (one, a), (two, b) = at(pair.first), at(pair.second)  # splits in order, so one ≤ two
        if a.content == b.content:
            continue
        differ = "; labels differ" if a.cells != b.cells and seen.names(a) else ""
        text = f"{place(two, b)} ~ {place(one, a)} ({pair.how}{differ})"
        if one == two:
            within.setdefault(pair.second, text)
        else:
            across[two, one].setdefault(pair.second, text)
    at_least = ", at least" if more else ""
    how = "looks" if seen.kind == "image" else "reads"
    for later, earlier in LATER:
        if texts := across.get((later, earlier)):
            yield Finding(
                "caution",
                f"rows of {later} have one in {earlier} that {how} the same{at_least}",
                len(texts),
                len(seen.splits[later]),
                tuple(texts.values()),
                f"look at them; remove those that are the same from {earlier}, or name what belongs "
                "together in a group column",
            )
    if within:
        yield Finding(
            "note",
            f"rows have one in their own split that {how} the same{at_least}",
            len(within),
            seen.count,
            tuple(within.values()),
            "look at them; where they show one thing several times, name it in a group column",
        )
