"""Splits of labelled rows: resolved, drawn, digested, and written to a run's manifest.

A split that the data do not bring is drawn from train: first test, TEST_SHARE of it, then ``val`` of the
rest. A draw is stratified, keeps groups and rows with equal inputs whole, and leaves a row of every stratum
in train.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compute.malloc import give_back
from ..errors import DataError, shorten
from ..io import guarded
from ..io.json_files import dumps
from ..io.progress import stage
from ..runs import records
from ..runs.side_files import ManifestRow
from ..tasks import Task
from .columns import Cells, Examples, IdentifiedRows, by_id, cells_of, groups_of
from .types import DataOptions, Example, Splits

if TYPE_CHECKING:
    from numpy.typing import NDArray


Strata = Callable[[Sequence[Cells]], list[str]]  # label cells of rows → a stratum each

TEST_SHARE = 0.2  # of train that becomes test where the data bring none

MIN_ROWS_PER_STRATUM, MIN_ROWS = 5, 50  # of train; with fewer, no val is drawn


def draw_splits(
    rows: IdentifiedRows, options: DataOptions, make_task: Callable[[Sequence[Cells], Cells], Task], strata: Strata
) -> tuple[Splits, Task]:
    """Divide identified rows into splits; return the splits and the task. See ``loading.load_data``.

    Raises DataError for splits that cannot be made, and for labels that the task cannot use.
    """
    raw, parts, notes = rows.raw, rows.by_split(), list(rows.notes)
    if options.leaks == "keep":
        check_leaks(parts, options)
    settled = resolve_leaks(parts, options.leaks)
    if settled:
        places = [f"{where} {what}" for where, what in settled]
        notes.append(f'leaks = "{options.leaks}": {len(settled)} rows: {shorten(places, 3)}')
    if not parts["train"]:
        raise DataError(f"{options.path} has no rows in train; they are all in val or test")

    task = make_task(cells_of(parts["train"]), raw.columns)
    check_cells(parts, task, options.path)

    if not parts["test"]:
        notes += draw_test(parts, options, strata)
    if options.folds:
        notes += prepare_folds(parts, options.folds, strata)
    elif not parts["val"]:
        notes.append(draw_val(parts, options, strata))
    splits = replace(splits_as_given(rows, parts), notes=(*raw.notes, *notes), settled=settled)
    give_back()
    return splits, task


def splits_as_given(rows: IdentifiedRows, parts: dict[str, Examples] | None = None) -> Splits:
    """Return the splits that the data name, or other ``parts``; draw no row and check no label."""
    parts = rows.by_split() if parts is None else parts
    return Splits(
        rows.raw.kind,
        parts["train"],
        parts["val"],
        parts["test"],
        digest=digest_of(parts),
        test_digest=digest_of({"test": parts["test"]}),
        notes=(*rows.raw.notes, *rows.notes),
        unreadable=rows.unreadable,
        left_out=rows.raw.left_out,
        empty=rows.raw.empty,
    )


def check_cells(parts: Mapping[str, Sequence[Example]], task: Task, path: str) -> None:
    """Check every label by the task. Raises DataError with all problems counted."""
    places: list[tuple[str, str]] = []
    for part in parts.values():
        wrong = [(i, problem) for i, c in enumerate(cells_of(part)) if (problem := task.problem(c))]
        places += [(part[i].where, problem) for i, problem in wrong]
    places.sort(key=lambda place: (len(place[0]), place[0]))  # row 2 before row 12
    problems = [f"{where}: {problem}" for where, problem in places]
    if problems:
        count = "1 label" if len(problems) == 1 else f"{len(problems)} labels"
        raise DataError(f"{path} has {count} that cannot be used: {shorten(problems)}")


# ---------------------------------------------------------------- rows with equal inputs in two splits


def check_leaks(parts: dict[str, Examples], options: DataOptions) -> None:
    """Check the share of a split's rows that are in an earlier split too: figures on them say nothing.

    Raises DataError where the share is above ``leak_limit``.
    """
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


def resolve_leaks(parts: dict[str, Examples], how: str) -> tuple[tuple[str, str], ...]:
    """Keep each distinct content in one split only, in place; return (where, what was done) of each row.

    With "drop" a content stays in the first of test, val and train that has it, and leaves the others. With
    "move" the first of train, val and test gets all its rows. Splits that are drawn later keep equal rows
    whole.
    """
    if how == "keep":
        return ()
    order = ("test", "val", "train") if how == "drop" else ("train", "val", "test")
    before = dict(parts)
    settled: list[tuple[str, str]] = []
    for i, split in enumerate(order):
        free = np.ones(len(before[split]), bool)  # rows that no earlier split of the order has
        for earlier in order[:i]:
            shared = free & np.isin(before[split].keys, before[earlier].keys)
            free &= ~shared
            rows = before[split].take(shared)
            if how == "move":
                parts[earlier] += rows
            what = (
                f"left out of {split}: it is in {earlier} too"
                if how == "drop"
                else f"moved from {split} to {earlier}: it is there too"
            )
            settled += [(e.where, what) for e in rows]
        parts[split] = before[split].take(free)
    for split in order:
        parts[split] = parts[split].sorted()
    return tuple(sorted(settled))


# ---------------------------------------------------------------- draws from train


def draw_test(parts: dict[str, Examples], options: DataOptions, strata: Strata) -> list[str]:
    """Draw test from train, in place; return notes. Raises DataError where no row can be drawn."""
    counts = draw(parts, "test", TEST_SHARE, strata, options.split_seed)
    if not parts["test"]:
        raise DataError(
            f"{options.path} brings no test rows and none can be set aside: every class "
            f"({len(parts['train'])} rows in all) is a single row or group; add rows or bring "
            "a test split"
        )
    notes = [draw_note("test", parts)]
    few = sorted(stratum for stratum, n in counts.items() if n < 2)
    if few:
        notes.append(f"test has fewer than 2 rows of: {shorten(few)}")
    return notes


def draw_val(parts: dict[str, Examples], options: DataOptions, strata: Strata) -> str:
    """Draw val from train, in place, unless train is too small or ``val`` is 0; return a note."""
    why = why_no_val(Counter(strata(cells_of(parts["train"]))))
    if options.val and not why:
        draw(parts, "val", options.val, strata, options.split_seed)
    if parts["val"]:
        return draw_note("val", parts)
    why = why or "the groups are too few" if options.val else "val = 0"
    return f"there is no val: {why}"


def why_no_val(strata: Counter[str]) -> str:
    """Return why no val is drawn from a train with so many rows in each stratum; "" where one can be."""
    rarest = min(strata, key=lambda s: (strata[s], s))
    if strata[rarest] < MIN_ROWS_PER_STRATUM:
        return f'train has {strata[rarest]} rows of "{rarest}", fewer than {MIN_ROWS_PER_STRATUM}'
    few = strata.total() < MIN_ROWS
    return f"train has {strata.total()} rows, fewer than {MIN_ROWS}" if few else ""


def prepare_folds(parts: dict[str, Examples], folds: int, strata: Strata) -> list[str]:
    """Add val to train, in place; return notes.

    Raises DataError where train has too few rows of a class, or too few groups, for so many folds.
    """
    notes = []
    if parts["val"]:
        notes.append(f"folds = {folds}: the {len(parts['val'])} rows of val join train")
    parts["train"] += parts["val"]
    parts["val"] = parts["val"].take([])
    train = parts["train"]
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
    return notes


def draw(parts: dict[str, Examples], name: str, fraction: float, strata: Strata, seed: int) -> dict[str, int]:
    """Move about ``fraction`` of train to the split ``name``, in place; return its rows per stratum.

    Each stratum of n rows has a target of round(fraction · n) rows, at least one where n > 1. Units
    come in the order of a hash of (seed, content). A unit is taken if it brings the counts nearer
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
    for unit in units_in_order(train, seed):
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


def draw_note(name: str, parts: dict[str, Examples]) -> str:
    """Return the note of a draw."""
    n, rest = len(parts[name]), len(parts["train"])
    return f"the data bring no {name}: {n} rows were drawn from train, which keeps {rest}"


def units_in_order(rows: Examples, seed: int) -> Iterator[list[int]]:
    """Yield the positions of each unit's rows, units in the order of a hash of (seed, content)."""
    unit = unit_numbers(rows)
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
    start = 0
    for size in sizes:
        yield positions[start : start + size].tolist()
        start += size


def unit_numbers(rows: Examples) -> NDArray[np.int64]:
    """Return the number of each row's unit [N].

    Rows of one group, or with equal inputs, directly or by a chain, are one unit and stay together.
    """
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


# ---------------------------------------------------------------- digest and manifest


def digest_of(parts: Mapping[str, Sequence[Example]]) -> str:
    """Return the sha256 of (id, split, cells) of every row, sorted, as one JSON list."""
    digest = hashlib.sha256(b"[")
    comma = b""
    for row in _sorted(parts):
        digest.update(comma + json.dumps(row).encode())
        comma = b", "
    digest.update(b"]")
    return digest.hexdigest()


def _sorted(parts: Mapping[str, Sequence[Example]]) -> Iterable[tuple[str, str, Cells]]:
    """Return (id, split, cells) of every row, sorted."""
    columns = [part for part in parts.values() if isinstance(part, Examples)]
    if not columns or len(columns) < len(parts):
        return sorted((e.id, split, e.cells) for split, part in parts.items() for e in part)
    names = list(parts)
    rows, part = by_id(columns)
    return zip(rows.ids(), (names[i] for i in part), cells_of(rows), strict=True)


def write_manifest(splits: Splits, path: Path) -> None:
    """Write one JSON line a row: id, hash of the inputs, split, label cells, place in the data, group."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for split in ("train", "val", "test"):
            for example in getattr(splits, split):
                file.write(dumps(manifest_line(split, example)) + "\n")


def manifest_line(split: str, example: Example) -> dict[str, Any]:
    """Return a row's line in the manifest; ``group`` is only there if the row has one."""
    row = {
        "id": example.id,
        "hash": example.content,
        "split": split,
        "cells": list(example.cells),
        "where": example.where,
    }
    return row if example.group is None else {**row, "group": example.group}


def read_manifest(path: Path) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest, one at a time. Raises UsageError for a missing or damaged manifest."""
    for number, line in guarded.lines(path.parent, path.name):
        yield records.line_of(path.parent, path.name, number, line, ManifestRow)
