"""Equal content with different labels: at most one of them is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..data.types import Example
from . import CheckContext, Finding, Need
from ._rows import place, repeated

NEEDS: frozenset[Need] = frozenset()


def check(seen: CheckContext) -> Iterator[Finding]:
    by_content: dict[str, list[tuple[str, Example]]] = defaultdict(list)
    rows_again, contents = repeated(seen)
    for split, e in rows_again:
        by_content[e.content].append((split, e))
    differ = [rows for rows in by_content.values() if len({e.cells for _, e in rows}) > 1]
    if differ:
        examples = tuple(" = ".join(f'{place(split, e)} "{";".join(e.cells)}"' for split, e in rows) for rows in differ)
        yield Finding(
            "problem",
            "inputs have rows with different labels",
            len(differ),
            contents,
            examples,
            "settle each label, or remove these rows",
        )
