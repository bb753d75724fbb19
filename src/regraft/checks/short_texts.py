"""Texts with next to nothing in them."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import located, place

NEEDS: frozenset[Need] = frozenset()

SHORT = 3  # letters and digits


def check(seen: CheckContext) -> Iterator[Finding]:
    if seen.kind != "text":
        return
    found = [
        f"{place(split, e)} {' | '.join(e.inputs)!r}"
        for split, e in located(seen)
        if sum(map(str.isalnum, "".join(e.inputs))) < SHORT
    ]
    if found:
        yield Finding(
            "note",
            f"texts have fewer than {SHORT} letters or digits",
            len(found),
            seen.count,
            tuple(found),
            "remove those that say nothing; a model can only guess their label",
        )
