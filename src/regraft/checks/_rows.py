"""Rows, as the checks name, order and compare them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..data.columns import Examples
from ..data.types import Example
from . import CheckContext

SPLIT_PAIRS = (
    ("val", "train"),
    ("test", "train"),
    ("test", "val"),
)  # (the later split, the earlier one that training or choices use)


def rows_with_split(context: CheckContext) -> Iterator[tuple[str, Example]]:
    """Yield every row with its split, in an order that does not depend on the order of the data."""
    for split, rows in by_split(context):
        yield from ((split, e) for e in sort_rows(rows))


def repeated_rows(context: CheckContext) -> tuple[list[tuple[str, Example]], int]:
    """Return the rows whose content occurs more than once, and the number of different contents."""
    parts = by_split(context)
    columns = [(split, rows) for split, rows in parts if isinstance(rows, Examples)]
    if len(columns) < len(parts):
        counts = Counter(e.content for _, e in rows_with_split(context))
        return [(s, e) for s, e in rows_with_split(context) if counts[e.content] > 1], len(counts)
    keys, counts_of_keys = np.unique(np.concatenate([rows.keys for _, rows in columns]), return_counts=True)
    repeats = [(split, rows.take(np.isin(rows.keys, keys[counts_of_keys > 1]))) for split, rows in columns]
    return [(split, e) for split, rows in repeats for e in rows.by_place()], len(keys)


def distinct_rows(context: CheckContext) -> list[tuple[str, Sequence[Example]]]:
    """Return the rows of each split without repeated content. The order is that of ``rows_with_split``."""
    return [(split, first_of_equals(sort_rows(rows))) for split, rows in by_split(context)]


def first_of_equals(rows: Sequence[Example]) -> Sequence[Example]:
    """Return the first row of each content."""
    if isinstance(rows, Examples):
        return rows.take(np.sort(np.unique(rows.keys, return_index=True)[1]))
    first: dict[str, Example] = {}
    for e in rows:
        first.setdefault(e.content, e)
    return list(first.values())


def by_split(context: CheckContext) -> list[tuple[str, Sequence[Example]]]:
    """Return (split, rows) in the order train, val, test."""
    return [(s, context.splits[s]) for s in ("train", "val", "test") if s in context.splits]


def sort_rows(rows: Sequence[Example]) -> Sequence[Example]:
    """Return rows sorted by their place, row 2 before row 12."""
    return rows.by_place() if isinstance(rows, Examples) else sorted(rows, key=sort_key)


def sort_key(example: Example) -> tuple[int, str, str]:
    """Return a key that sorts row 2 before row 12."""
    return len(example.where), example.where, example.id


def row_name(split: str, example: Example) -> str:
    """Return the place of a row, with its split where the place does not begin with it."""
    return example.where if example.where.startswith(split) else f"{example.where} ({split})"


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names sorted by length, then by letter: "class 2" comes before "class 12"."""
    return tuple(sorted(names, key=lambda name: (len(name), name)))
