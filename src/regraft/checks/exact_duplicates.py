"""Rows with equal content, across splits and within one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on
from ._rows import SPLIT_PAIRS, repeated_rows, row_name

NEEDS: frozenset[Need] = frozenset()


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield findings on rows that two splits share and on rows that repeat within a split."""
    places: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in context.splits}
    for split, e in repeated_rows(context)[0]:
        places[split][e.content].append(row_name(split, e))
    for later, earlier in SPLIT_PAIRS:
        known = places.get(earlier, {})
        shared = [
            f"{there} = {known[key][0]}"
            for key, rows in places.get(later, {}).items()
            if key in known
            for there in rows
        ]
        yield from findings_on(
            "problem",
            f"rows of {later} that are also in {earlier}",
            shared,
            len(context.splits.get(later, ())),
            f'remove them from {earlier}, or set data.leaks = "drop"; they make figures on {later} too good',
        )
    repeats = [
        f"{there} = {rows[0]}" for of_split in places.values() for rows in of_split.values() for there in rows[1:]
    ]
    yield from findings_on(
        "caution",
        "rows repeat another of their own split",
        repeats,
        context.count,
        "remove them, unless they should weigh more; repeated rows make the intervals of test too narrow",
    )
