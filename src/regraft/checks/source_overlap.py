"""Target rows that are among the source data: the source may have been trained on them."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need, Severity
from ._near import find_pairs
from ._rows import content_key, row_name, rows_with_split, sort_key

NEEDS: frozenset[Need] = frozenset({"source rows"})


def check(seen: CheckContext) -> Iterator[Finding]:
    assert seen.source_rows is not None
    source = {content_key(e): e for e in sorted(seen.source_rows, key=sort_key)}
    target = [e for _, e in rows_with_split(seen)]
    rows = [*target, *source.values()]
    near: dict[str, str] = {}
    found, more = find_pairs(rows, seen.kind, None, between=len(target))
    for pair in found:
        a, b = rows[pair.first], rows[pair.second]
        near.setdefault(a.id, f"{b.where} of the source data; {pair.how}")
    for split in ("test", "val", "train"):
        same: list[str] = []
        alike: list[str] = []
        for e in sorted(seen.splits[split], key=sort_key):
            if content_key(e) in source:
                same.append(f"{row_name(split, e)} = {source[content_key(e)].where} of the source data")
            elif e.id in near:
                alike.append(f"{row_name(split, e)} ~ {near[e.id]}")
        severity: Severity = "problem" if split == "test" else "caution"
        remedy = f"remove them from {split}: the source may have learnt them with their labels"
        of = len(seen.splits[split])
        if same:
            what = f"rows of {split} are also in the source data"
            yield Finding(severity, what, len(same), of, tuple(same), remedy)
        if alike:
            what = f"rows of {split} have one in the source data that is nearly the same"
            what += ", at least" if more else ""
            yield Finding("caution", what, len(alike), of, tuple(alike), f"look at them; {remedy}")
