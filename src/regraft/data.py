"""Target data: read, checked, identified by content, split once, and the task built from train.

Everything here is a function of the rows' contents and of the split seed: reordering the rows or
renaming the files of a table changes neither an id nor a split.

A split that the data do not bring is drawn from train: 20 % for test, then ``val`` of what remains.
A draw is stratified, keeps groups and rows with equal inputs whole, and leaves a row of every
stratum in train.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import guarded, plugins, records
from .columns import (
    Examples,
    StoredRows,
    by_id,
    cells_of,
    groups_of,
    identified,
    splits_of,
    stored,
    stored_facts,
)
from .decoding import Lookers
from .errors import DataError, did_you_mean, shorten
from .heap import give_back
from .pictures import facts_of, reason
from .progress import stage
from .runfiles import dumps
from .types import DataOptions, Example, Kind, PictureFacts, RawData, Row, Splits, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

Cells = tuple[str, ...]
TEST = 0.2  # fraction of train that becomes test where the data bring none
MIN_PER_STRATUM, MIN_ROWS = 5, 50  # fewer in train: no val is drawn
AHEAD = 16  # pictures that each thread may have been given before the first is done


@dataclass(frozen=True)
class Rows:
    """The rows that can be used, sorted by content, and what was not taken."""

    raw: RawData  # its rows are the examples
    examples: Examples
    unreadable: tuple[tuple[str, str], ...] = ()  # (where, why)
    notes: tuple[str, ...] = ()

    @property
    def named(self) -> list[str | None]:
        """The split that the data name for each."""
        return splits_of(self.examples)

    def by_split(self) -> dict[str, Examples]:
        names = ["train", "val", "test"]
        found = (names.index(split or "train") for split in self.named)
        number = np.fromiter(found, np.int8, len(self.examples))
        return {name: self.examples.take(number == i) for i, name in enumerate(names)}


def load_data(
    options: DataOptions,
    make_task: Callable[[Sequence[Cells], Cells], Task],
    strata: Callable[[Sequence[Cells]], list[str]],
) -> tuple[Splits, Task]:
    """The data as splits, and their task.

    ``make_task(train cells, column names)`` builds the task from the train rows that the data
    bring, before anything is drawn from them; ``strata`` names a stratum for each row.

    Raises DataError for data that cannot be used as they are, with every bad row counted.
    """
    return divide(look(options), options, make_task, strata)


def look(options: DataOptions) -> Rows:
    """Every row of the data, read once and identified. Raises DataError as ``load_data`` does."""
    return _identify(read_raw(options), options.on_bad)


def divide(
    found: Rows,
    options: DataOptions,
    make_task: Callable[[Sequence[Cells], Cells], Task],
    strata: Callable[[Sequence[Cells]], list[str]],
) -> tuple[Splits, Task]:
    """Rows → splits and their task; see ``load_data``."""
    raw, parts, notes = found.raw, found.by_split(), list(found.notes)
    if options.leaks == "keep":
        _limit(parts, options)
    settled = _settle(parts, options.leaks)
    if settled:
        places = [f"{where} {what}" for where, what in settled]
        notes.append(f'leaks = "{options.leaks}": {len(settled)} rows: {shorten(places, 3)}')
    if not parts["train"]:
        raise DataError(f"{options.path} has no rows in train; they are all in val or test")

    task = make_task(cells_of(parts["train"]), raw.columns)
    check_cells(parts, task, options.path)

    if not parts["test"]:
        counts = _draw(parts, "test", TEST, strata, options.split_seed)
        if not parts["test"]:
            raise DataError(
                f"{options.path} brings no test rows and none can be set aside: every class "
                f"({len(parts['train'])} rows in all) is a single row or group; add rows or bring "
                "a test split"
            )
        notes.append(_drawn("test", parts))
        few = sorted(s for s, n in counts.items() if n < 2)
        if few:
            notes.append(f"test has fewer than 2 rows of: {shorten(few)}")
    if options.folds:
        if parts["val"]:
            notes.append(f"folds = {options.folds}: the {len(parts['val'])} rows of val join train")
        parts["train"] += parts["val"]
        parts["val"] = parts["val"].take([])
        _check_folds(parts["train"], strata, options.folds)
    elif not parts["val"]:
        why = _too_small(Counter(strata(cells_of(parts["train"]))))
        if options.val and not why:
            _draw(parts, "val", options.val, strata, options.split_seed)
        if parts["val"]:
            notes.append(_drawn("val", parts))
        else:
            why = why or "the groups are too few" if options.val else "val = 0"
            notes.append(f"there is no val: {why}")
    splits = replace(as_brought(found, parts), notes=(*raw.notes, *notes), settled=settled)
    give_back()
    return splits, task


def as_brought(found: Rows, parts: dict[str, Examples] | None = None) -> Splits:
    """The splits that the data name, nothing drawn and no label checked; or other parts of them."""
    parts = found.by_split() if parts is None else parts
    return Splits(
        found.raw.kind,
        parts["train"],
        parts["val"],
        parts["test"],
        digest=digest_of(parts),
        test_digest=digest_of({"test": parts["test"]}),
        notes=(*found.raw.notes, *found.notes),
        unreadable=found.unreadable,
        left_out=found.raw.left_out,
        empty=found.raw.empty,
    )


def read_raw(options: DataOptions) -> RawData:
    """The rows as their format reads them, as columns.

    Raises DataError for a path that does not exist or that not exactly one format knows, and DiskError
    where there is no room for the columns.
    """
    try:
        return _read_raw(options)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be opened: {error.strerror}") from error


def _read_raw(options: DataOptions) -> RawData:
    path, names = options.path, plugins.names("formats")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"; {did_you_mean(path.name, beside)}" if 0 < len(beside) < 50 else ""
        raise DataError(f"{path} does not exist{hint}")
    refuse_archive(path)
    if options.format == "auto":
        found = [n for n in names if plugins.module("formats", n).detects(path)]
        if len(found) > 1:
            raise DataError(f"{path} could be read as {' or '.join(found)}: say --format NAME")
        if not found:
            raise DataError(
                f"{path} is none of: a folder with CLASS/*.jpg or train/CLASS/*.jpg; a table "
                "(.csv, .tsv, .jsonl, .parquet); a folder with a train table. Where a folder has a "
                "table and pictures, give the table"
            )
        name = found[0]
    elif options.format in names:
        name = options.format
    else:
        raise DataError(
            f'there is no format "{options.format}"; {did_you_mean(options.format, names)}'
        )
    module = plugins.module("formats", name)
    raw: RawData
    rows: Iterable[Row]
    if hasattr(module, "stream"):
        raw, rows = module.stream(path, options)
    else:
        raw = module.read(path, options)
        rows = raw.rows
    return replace(raw, rows=stored(rows))


ARCHIVES = {  # by their first bytes: the name of a file says nothing for sure
    b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2",
    b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar",
}  # fmt: skip

WORKBOOKS = (".xlsx", ".xlsm", ".xltx", ".ods", ".numbers")


def refuse_archive(path: Path) -> None:
    """Raises DataError for an archive. None is opened: what unpacks to more than the disk holds, or to
    places outside of its folder, is left to tools that are made for it, and to eyes that look."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(262)
    kind = next((kind for magic, kind in ARCHIVES.items() if start.startswith(magic)), None)
    kind = "tar" if start[257:262] == b"ustar" else kind
    if kind is not None and path.suffix.lower() in WORKBOOKS:
        raise DataError(
            f"{path} is a spreadsheet's workbook, which is not read: save the sheet with the rows as CSV "
            "(UTF-8) and give that"
        )
    if kind is not None:
        raise DataError(
            f"{path} is an archive ({kind}), and archives are not opened: unpack it with a tool of your "
            f"choice and give the folder, or the table, that comes out"
        )


def rows_of(options: DataOptions, task: Task, kind: Kind) -> tuple[Examples, str]:
    """Rows to judge a run that is done by, and what to call them: the data's test rows, else all.

    Raises DataError for inputs of another kind and for labels that the task does not know.
    """
    examples, named, _ = rows_and_splits(options.for_task(task), kind)
    parts = {"all rows": examples}
    if "test" in named:
        parts = {"test rows": examples.take([i for i, s in enumerate(named) if s == "test"])}
    check_cells(parts, task, options.path)
    ((which, rows),) = parts.items()
    return rows, which


def rows_and_splits(
    options: DataOptions, kind: Kind
) -> tuple[Examples, list[str | None], list[str]]:
    """Every row of the data, the split that they name for it, and notes; labels are not checked.

    Raises DataError for inputs of another kind.
    """
    raw = read_raw(options)
    if raw.kind != kind:
        raise DataError(f"{options.path} holds {raw.kind}s and the run takes {kind}s")
    found = _identify(raw, options.on_bad)
    return found.examples, found.named, list(found.notes)


# ---------------------------------------------------------------- identity


@dataclass(frozen=True, slots=True)
class _Look:
    digest: str  # sha256 of the inputs
    problem: str | None = None  # why they cannot be used
    facts: PictureFacts | None = None


def _inspect(kind: str, row: Row, look_at: Callable[[Path], PictureFacts] = facts_of) -> _Look:
    if kind != "image":
        # JSON keeps a pair apart from one text that holds the separator
        text = json.dumps(row.inputs, ensure_ascii=True)
        empty = not any(t.strip() for t in row.inputs)  # a review may have a title alone
        problem = "the text is empty" if empty else None
        return _Look(hashlib.sha256(text.encode()).hexdigest(), problem)
    path = Path(row.inputs[0])
    try:
        facts = look_at(path)
        with path.open("rb") as file:
            return _Look(hashlib.file_digest(file, "sha256").hexdigest(), facts=facts)
    except DataError as error:
        problem = reason(error)
    return _Look("", problem if row.where.endswith(path.name) else f"{path.name}: {problem}")


def _inspected(kind: Kind, rows: Iterable[Row]) -> Iterator[tuple[Row, _Look]]:
    """Yield each row with what is seen of it. Threads decode pictures, some ahead of what is asked for."""
    if kind != "image":
        yield from ((row, _inspect(kind, row)) for row in rows)
        return
    threads = os.cpu_count() or 1
    begun: deque[tuple[Row, Future[_Look]]] = deque()
    # Pillow and hashlib release the GIL
    with ThreadPoolExecutor(threads) as pool, Lookers() as lookers:
        for row in rows:
            begun.append((row, pool.submit(_inspect, kind, row, lookers.look)))
            if len(begun) == AHEAD * threads:
                first, look = begun.popleft()
                yield first, look.result()
        yield from ((row, look.result()) for row, look in begun)


def _identify(raw: RawData, on_bad: str) -> Rows:
    """Rows sorted by content; bad inputs stop or are left out."""
    rows = raw.rows if isinstance(raw.rows, StoredRows) else stored(raw.rows)
    digests, usable = bytearray(32 * len(rows)), np.ones(len(rows), bool)
    unreadable: list[tuple[str, str]] = []

    half = 0  # rows with one empty text of two

    def looks() -> Iterator[PictureFacts | None]:
        nonlocal half
        seen = stage("hashing rows", len(rows)).over(_inspected(raw.kind, rows))
        for i, (row, at) in enumerate(seen):
            if at.problem:
                usable[i] = False
                unreadable.append((row.where, at.problem))
            else:
                digests[32 * i : 32 * i + 32] = bytes.fromhex(at.digest)
                half += raw.kind == "text" and not all(t.strip() for t in row.inputs)
            yield at.facts

    if raw.kind == "image":
        facts = stored_facts(looks())
    else:
        facts = None
        deque(looks(), maxlen=0)
    bad = [f"{where} ({problem})" for where, problem in unreadable]
    inputs = "picture" if raw.kind == "image" else "text"
    count = f"{len(bad)} of {len(rows)} {inputs}s cannot be used: {shorten(bad)}"
    if bad and on_bad == "fail":
        if raw.kind == "image" and not any(Path(r.inputs[0]).exists() for r in rows):
            count += "; are the pictures elsewhere (--image-root FOLDER)?"
        raise DataError(f"{count}; mend or remove them, or leave them out with --on-bad skip")
    if not usable.any():
        raise DataError(f"no row can be used; {count}")
    notes = [f"left out: {count}"] if bad else []
    if half:
        notes.append(f"{half} of {usable.sum()} rows have one empty text of two")
    examples = identified(rows, np.frombuffer(digests, np.uint8).reshape(-1, 32), usable, facts)
    give_back()
    return Rows(replace(raw, rows=()), examples, tuple(unreadable), tuple(notes))


def content(example: Example) -> str:
    """The part of an id that stands for the inputs' content."""
    return example.id.partition("-")[0]


def check_cells(parts: Mapping[str, Sequence[Example]], task: Task, path: Path) -> None:
    """Raises DataError for labels that the task cannot use, all of them counted."""
    found: list[tuple[str, str]] = []
    for part in parts.values():
        wrong = [(i, words) for i, c in enumerate(cells_of(part)) if (words := task.problem(c))]
        found += [(part[i].where, words) for i, words in wrong]
    found.sort(key=lambda f: (len(f[0]), f[0]))  # row 2 before row 12
    problems = [f"{where}: {problem}" for where, problem in found]
    if problems:
        count = "1 label" if len(problems) == 1 else f"{len(problems)} labels"
        raise DataError(f"{path} has {count} that cannot be used: {shorten(problems)}")


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


def _settle(parts: dict[str, Examples], how: str) -> tuple[tuple[str, str], ...]:
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


def _units(rows: Examples) -> NDArray[np.int64]:
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
    unit = _units(rows)
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
    parts: dict[str, Examples],
    name: str,
    fraction: float,
    strata: Callable[[Sequence[Cells]], list[str]],
    seed: int,
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


def _check_folds(
    train: Examples, strata: Callable[[Sequence[Cells]], list[str]], folds: int
) -> None:
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


# ---------------------------------------------------------------- manifest


def write_manifest(splits: Splits, path: Path) -> None:
    """One JSON line a row: id, hash of the inputs, split, label cells, where it came from, group."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for split in ("train", "val", "test"):
            for example in getattr(splits, split):
                file.write(dumps(manifest_row(split, example)) + "\n")


def manifest_row(split: str, example: Example) -> dict[str, Any]:
    row = {
        "id": example.id,
        "hash": content(example),
        "split": split,
        "cells": list(example.cells),
        "where": example.where,
    }
    return row if example.group is None else {**row, "group": example.group}


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a manifest, one at a time. Raises UsageError for one that is missing or damaged."""
    for number, line in guarded.lines(path.parent, path.name):
        yield records.line_of(path.parent, path.name, number, line, records.ManifestRow)
