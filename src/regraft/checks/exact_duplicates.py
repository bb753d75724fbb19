"""Rows with the very same content, across splits and within one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import LATER, place, repeated

NEEDS: frozenset[Need] = frozenset()


def check(seen: CheckContext) -> Iterator[Finding]:
    places: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in seen.splits}
    for split, e in repeated(seen)[0]:
        places[split][e.content].append(place(split, e))
    for later, earlier in LATER:
        known = places.get(earlier, {})
        shared = [
            f"{there} = {known[key][0]}"
            for key, rows in places.get(later, {}).items()
            if key in known
            for there in rows
        ]
        if shared:
            yield Finding(
                "problem",
                f"rows of {later} that are also in {earlier}",
                len(shared),
                len(seen.splits[later]),
                tuple(shared),
                f'remove them from {earlier}, or set data.leaks = "drop": else figures on {later} come out too good',
            )
    again = [f"{there} = {rows[0]}" for of_split in places.values() for rows in of_split.values() for there in rows[1:]]
    if again:
        yield Finding(
            "caution",
            "rows repeat another of their own split",
            len(again),
            seen.count,
            tuple(again),
            "remove them, unless they are meant to weigh more; those of test make its intervals too narrow",
        )
