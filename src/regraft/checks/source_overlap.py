"""Target rows that are among the source data: the source may have been trained on them."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need, Severity
from ._near import pairs
from ._rows import key, located, place

NEEDS: frozenset[Need] = frozenset({"source rows"})


def check(seen: CheckContext) -> Iterator[Finding]:
    assert seen.source_rows is not None
    source = {e.content: e for e in sorted(seen.source_rows, key=key)}
    target = [e for _, e in located(seen)]
    rows = [*target, *source.values()]
    near: dict[str, str] = {}
    found, more = pairs(rows, seen.kind, None, between=len(target))
    for pair in found:
        a, b = rows[pair.first], rows[pair.second]
        near.setdefault(a.id, f"{b.where} of the source data; {pair.how}")
    for split in ("test", "val", "train"):
        same: list[str] = []
        alike: list[str] = []
        for e in sorted(seen.splits[split], key=key):
            if e.content in source:
                same.append(f"{place(split, e)} = {source[e.content].where} of the source data")
            elif e.id in near:
                alike.append(f"{place(split, e)} ~ {near[e.id]}")
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
