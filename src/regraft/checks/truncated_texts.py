"""Texts that are longer than the source reads: the part that decides the label may be cut off."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset({"tokens"})


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on texts that are cut."""
    assert context.tokens is not None
    limit, lengths = context.max_tokens, context.tokens
    cut = [(split, e) for split, e in rows_with_split(context) if lengths[e.id] > limit]
    if cut:
        cut_share = sum(lengths[e.id] - limit for _, e in cut) / sum(lengths.values())
        yield Finding(
            "caution",
            f"texts are longer than {limit} tokens and are cut there, {cut_share:.1%} of all tokens",
            len(cut),
            context.count,
            tuple(f"{row_name(split, e)} ({lengths[e.id]} tokens)" for split, e in cut),
            "move the important part to the start, split the texts into rows, or choose a source that reads more",
        )
