"""Target rows that are also in the source data: the source may have been trained on them."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on
from ._near import find_pairs
from ._rows import row_name, rows_with_split, sort_key

NEEDS: frozenset[Need] = frozenset({"source rows"})


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield findings on target rows that are equal, or nearly equal, to source rows."""
    assert context.source_rows is not None
    source = {e.content: e for e in sorted(context.source_rows, key=sort_key)}
    target = [e for _, e in rows_with_split(context)]
    rows = [*target, *source.values()]
    near: dict[str, str] = {}
    near_pairs, incomplete = find_pairs(rows, context.kind, None, between=len(target))
    for pair in near_pairs:
        a, b = rows[pair.first], rows[pair.second]
        near.setdefault(a.id, f"{b.where} of the source data; {pair.reason}")
    for split in ("test", "val", "train"):
        same: list[str] = []
        alike: list[str] = []
        for e in sorted(context.splits[split], key=sort_key):
            if e.content in source:
                same.append(f"{row_name(split, e)} = {source[e.content].where} of the source data")
            elif e.id in near:
                alike.append(f"{row_name(split, e)} ~ {near[e.id]}")
        remedy = f"remove them from {split}; the source may have been trained on them with their labels"
        of = len(context.splits[split])
        what = f"rows of {split} are also in the source data"
        yield from findings_on("problem" if split == "test" else "caution", what, same, of, remedy)
        what = f"rows of {split} have one in the source data that is nearly the same"
        what += ", at least" if incomplete else ""
        yield from findings_on("caution", what, alike, of, f"look at them; {remedy}")
