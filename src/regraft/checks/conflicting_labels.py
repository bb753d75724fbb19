"""Equal content with different labels: at most one label is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..data.types import Example
from . import CheckContext, Finding, Need, findings_on
from ._rows import repeated_rows, row_name

NEEDS: frozenset[Need] = frozenset()


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on inputs that have several labels."""
    by_content: dict[str, list[tuple[str, Example]]] = defaultdict(list)
    rows_again, contents = repeated_rows(context)
    for split, e in rows_again:
        by_content[e.content].append((split, e))
    differ = [rows for rows in by_content.values() if len({e.cells for _, e in rows}) > 1]
    yield from findings_on(
        "problem",
        "inputs have rows with different labels",
        [" = ".join(f'{row_name(split, e)} "{";".join(e.cells)}"' for split, e in rows) for rows in differ],
        contents,
        "correct the labels, or remove these rows",
    )
