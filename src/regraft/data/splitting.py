"""Splits of labelled rows into train, val and test: by group, stratified, without leaks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, shorten
from ..io.progress import stage
from .columns import Examples, by_id, cells_of, groups_of
from .types import DataOptions, Example

if TYPE_CHECKING:
    from numpy.typing import NDArray


Cells = tuple[str, ...]

TEST = 0.2  # fraction of train that becomes test where the data bring none

MIN_PER_STRATUM, MIN_ROWS = 5, 50  # fewer in train: no val is drawn


# ---------------------------------------------------------------- splits


def _limit(parts: dict[str, Examples], options: DataOptions) -> None:
    """Raises DataError where too large a share of a split is in an earlier one too: a figure on such a
    test says nothing."""
    for later, earlier in (("test", "train"), ("test", "val"), ("val", "train")):
        shared = np.flatnonzero(np.isin(parts[later].keys, parts[earlier].keys))
        if len(shared) > options.leak_limit * len(parts[later]):
            places = sorted(e.where for e in parts[later].take(shared))
            raise DataError(
                f"{options.path}: {len(shared)} of {len(parts[later])} rows of {later} are in {earlier} "
                f"too, more than data.leak_limit = {options.leak_limit:g} allows: "
                f'{shorten(places, 3)}; say what becomes of them with data.leaks = "drop" or '
                f'"move", or bring other rows'
            )


def _resolve_leaks(parts: dict[str, Examples], how: str) -> tuple[tuple[str, str], ...]:
    """Let one split alone hold what is equal, in place; (where, what) of each row that was touched.

    drop: test keeps it before val before train, the others leave it out. move: train gets it all
    before val before test. Splits that are drawn later keep equal rows whole anyhow.
    """
    if how == "keep":
        return ()
    order = ("test", "val", "train") if how == "drop" else ("train", "val", "test")
    before = dict(parts)
    settled: list[tuple[str, str]] = []
    for i, split in enumerate(order):
        free = np.ones(len(before[split]), bool)  # what no split before it holds
        for there in order[:i]:
            held = free & np.isin(before[split].keys, before[there].keys)
            free &= ~held
            rows = before[split].take(held)
            if how == "move":
                parts[there] += rows
            what = (
                f"left out of {split}: it is in {there} too"
                if how == "drop"
                else f"moved from {split} to {there}: it is there too"
            )
            settled += [(e.where, what) for e in rows]
        parts[split] = before[split].take(free)
    for split in order:
        parts[split] = parts[split].sorted()
    return tuple(sorted(settled))


def _group_codes(rows: Examples) -> NDArray[np.int64]:
    """The number of each row's unit: rows of one group, or with equal inputs, directly or by a chain,
    must stay together."""
    contents, content = np.unique(rows.keys, return_inverse=True)
    groups: dict[str, int] = {}
    tied = [(i, g) for i, g in enumerate(groups_of(rows)) if g is not None]
    if not tied:
        return content.astype(np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = [len(contents) + groups.setdefault(g, len(groups)) for _, g in tied]
    edges = (content[[i for i, _ in tied]], numbers)
    size = len(contents) + len(groups)
    graph = coo_array((np.ones(len(tied), np.int8), edges), shape=(size, size))
    unit = connected_components(graph, directed=False)[1][content]
    return np.unique(unit, return_inverse=True)[1].astype(np.int64)


def _in_order(rows: Examples, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each unit, units in the order of a hash of (seed, content)."""
    unit = _group_codes(rows)
    least = np.full(int(unit.max(initial=-1)) + 1, 2**64 - 1, np.uint64)
    np.minimum.at(least, unit, rows.keys)
    hashes = bytearray(32 * len(least))
    for i, key in enumerate(least):
        hashes[32 * i : 32 * i + 32] = hashlib.sha256(f"{seed}:{key:016x}".encode()).digest()
    order = np.argsort(np.frombuffer(hashes, "S32"), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    sizes = np.bincount(unit, minlength=len(least))[order]
    positions = np.argsort(rank[unit], kind="stable")
    at = 0
    for size in sizes:
        yield positions[at : at + size].tolist()
        at += size


def _draw(
    parts: dict[str, Examples], name: str, fraction: float, strata: Callable[[Sequence[Cells]], list[str]], seed: int
) -> dict[str, int]:
    """Moves about ``fraction`` of train to the split ``name``, in place; rows of it a stratum.

    Each stratum of n rows has a target of round(fraction · n) rows, at least one where n > 1. Units
    come in the order of a hash of (seed, content); one is taken if that brings the counts nearer
    their targets and leaves a row of each of its strata in train. For units of one row that takes
    the first rows of each stratum, and exactly the target.
    """
    train = parts["train"]
    stratum = strata(cells_of(train))
    left = Counter(stratum)
    before = dict(left)
    wanted = {s: max(1, round(fraction * n)) if n > 1 else 0 for s, n in left.items()}
    taken = np.zeros(len(train), bool)
    progress = stage("dividing rows", len(train))
    for unit in _in_order(train, seed):
        progress.advance(len(unit))
        counts = Counter([stratum[i] for i in unit]) if len(unit) > 1 else {stratum[unit[0]]: 1}
        nearer = sum(abs(wanted[s]) - abs(wanted[s] - n) for s, n in counts.items()) > 0
        if nearer and all(left[s] > n for s, n in counts.items()):
            taken[unit] = True
            for s, n in counts.items():
                wanted[s] -= n
                left[s] -= n
    parts[name], parts["train"] = train.take(taken), train.take(~taken)
    return {s: n - left[s] for s, n in before.items()}


def _too_small(strata: Counter[str]) -> str:
    """Why no val is drawn from a train with so many rows in each stratum; "" where one can be."""
    rarest = min(strata, key=lambda s: (strata[s], s))
    if strata[rarest] < MIN_PER_STRATUM:
        return f'train has {strata[rarest]} rows of "{rarest}", fewer than {MIN_PER_STRATUM}'
    few = strata.total() < MIN_ROWS
    return f"train has {strata.total()} rows, fewer than {MIN_ROWS}" if few else ""


def _check_folds(train: Examples, strata: Callable[[Sequence[Cells]], list[str]], folds: int) -> None:
    """Raises DataError where a class, or the groups, cannot be in every fold."""
    counts = Counter(strata(cells_of(train)))
    rarest = min(counts, key=lambda s: (counts[s], s))
    if counts[rarest] < folds:
        raise DataError(
            f'folds = {folds}: train has {counts[rarest]} rows of "{rarest}", fewer than a fold each; '
            f"set data.folds to at most {counts[rarest]}, or add rows"
        )
    named = Counter(groups_of(train))
    alone = named.pop(None, 0)
    groups = list(named)
    if groups and len(groups) + alone < folds:
        raise DataError(
            f"folds = {folds}: train has {len(groups)} groups, which stay whole: set data.folds to at "
            f"most {len(groups)}"
        )


def _drawn(name: str, parts: dict[str, Examples]) -> str:
    n, rest = len(parts[name]), len(parts["train"])
    return f"the data bring no {name}: {n} rows were drawn from train, which keeps {rest}"


def digest_of(parts: Mapping[str, Sequence[Example]]) -> str:
    """sha256 over (id, split, cells) of every row, sorted, as one JSON list."""
    found = hashlib.sha256(b"[")
    comma = b""
    for row in _sorted(parts):
        found.update(comma + json.dumps(row).encode())
        comma = b", "
    found.update(b"]")
    return found.hexdigest()


def _sorted(parts: Mapping[str, Sequence[Example]]) -> Iterable[tuple[str, str, Cells]]:
    """(id, split, cells) of every row, sorted."""
    columns = [part for part in parts.values() if isinstance(part, Examples)]
    if not columns or len(columns) < len(parts):
        return sorted((e.id, split, e.cells) for split, part in parts.items() for e in part)
    names = list(parts)
    rows, part = by_id(columns)
    return zip(rows.ids(), (names[i] for i in part), cells_of(rows), strict=True)
