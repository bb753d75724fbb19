"""Texts with next to nothing in them."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset()

MIN_LETTERS = 3  # letters and digits


def check(seen: CheckContext) -> Iterator[Finding]:
    if seen.kind != "text":
        return
    found = [
        f"{row_name(split, e)} {' | '.join(e.inputs)!r}"
        for split, e in rows_with_split(seen)
        if sum(map(str.isalnum, "".join(e.inputs))) < MIN_LETTERS
    ]
    if found:
        yield Finding(
            "note",
            f"texts have fewer than {MIN_LETTERS} letters or digits",
            len(found),
            seen.count,
            tuple(found),
            "remove those that say nothing; a model can only guess their label",
        )
