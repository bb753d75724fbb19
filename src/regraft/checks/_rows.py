"""Rows as the checks name and compare them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..data.columns import Examples
from ..data.types import Example
from . import CheckContext

LATER = (("val", "train"), ("test", "train"), ("test", "val"))  # a row of the first is news in both


def located(seen: CheckContext) -> Iterator[tuple[str, Example]]:
    """Yield every row with its split, in an order that does not depend on that of the data."""
    for split, rows in by_split(seen):
        yield from ((split, e) for e in in_place_order(rows))


def repeated(seen: CheckContext) -> tuple[list[tuple[str, Example]], int]:
    """Return the rows whose content others have too, as ``located`` does, and how many contents there are."""
    parts = by_split(seen)
    columns = [(split, rows) for split, rows in parts if isinstance(rows, Examples)]
    if len(columns) < len(parts):
        counts = Counter(e.content for _, e in located(seen))
        return [(s, e) for s, e in located(seen) if counts[e.content] > 1], len(counts)
    keys, times = np.unique(np.concatenate([rows.keys for _, rows in columns]), return_counts=True)
    again = [(split, rows.take(np.isin(rows.keys, keys[times > 1]))) for split, rows in columns]
    return [(split, e) for split, rows in again for e in rows.by_place()], len(keys)


def distinct(seen: CheckContext) -> list[tuple[str, Sequence[Example]]]:
    """Return the rows of each split in the order of ``located``, of equal ones the first alone."""
    return [(split, first_of_equals(in_place_order(rows))) for split, rows in by_split(seen)]


def first_of_equals(rows: Sequence[Example]) -> Sequence[Example]:
    if isinstance(rows, Examples):
        return rows.take(np.sort(np.unique(rows.keys, return_index=True)[1]))
    first: dict[str, Example] = {}
    for e in rows:
        first.setdefault(e.content, e)
    return list(first.values())


def by_split(seen: CheckContext) -> list[tuple[str, Sequence[Example]]]:
    return [(s, seen.splits[s]) for s in ("train", "val", "test") if s in seen.splits]


def in_place_order(rows: Sequence[Example]) -> Sequence[Example]:
    """Return rows sorted by where they stand, row 2 before row 12."""
    return rows.by_place() if isinstance(rows, Examples) else sorted(rows, key=key)


def key(example: Example) -> tuple[int, str, str]:
    """Row 2 before row 12."""
    return len(example.where), example.where, example.id


def place(split: str, example: Example) -> str:
    """Where a row stands, with its split where that is not said already."""
    return example.where if example.where.startswith(split) else f"{example.where} ({split})"


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (len(name), name)))
