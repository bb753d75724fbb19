"""Texts that are nearly empty."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset()

MIN_LETTERS = 3  # letters and digits


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on texts with fewer than MIN_LETTERS letters and digits."""
    if context.kind != "text":
        return
    short = [
        f"{row_name(split, e)} {' | '.join(e.inputs)!r}"
        for split, e in rows_with_split(context)
        if sum(map(str.isalnum, "".join(e.inputs))) < MIN_LETTERS
    ]
    yield from findings_on(
        "note",
        f"texts have fewer than {MIN_LETTERS} letters or digits",
        short,
        context.count,
        "remove those without meaning; a model can only guess their labels",
    )
