"""Texts that are longer than the source reads: what decides the label may lie behind the cut."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset({"tokens"})


def check(seen: CheckContext) -> Iterator[Finding]:
    assert seen.tokens is not None
    limit, lengths = seen.max_tokens, seen.tokens
    cut = [(split, e) for split, e in rows_with_split(seen) if lengths[e.id] > limit]
    if cut:
        lost = sum(lengths[e.id] - limit for _, e in cut) / sum(lengths.values())
        yield Finding(
            "caution",
            f"texts are longer than {limit} tokens and are cut there, {lost:.1%} of all tokens",
            len(cut),
            seen.count,
            tuple(f"{row_name(split, e)} ({lengths[e.id]} tokens)" for split, e in cut),
            "put what matters first, cut the texts into rows, or take a source that reads more",
        )
