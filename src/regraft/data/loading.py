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
from typing import TYPE_CHECKING

import numpy as np

from .. import plugins
from ..compute.arrays import Kind
from ..compute.malloc import give_back
from ..errors import DataError, did_you_mean, shorten
from ..io.hashing import file_digest
from ..io.progress import stage
from ..tasks import Task
from .columns import Examples, StoredRows, cells_of, identified, splits_of, stored, stored_facts
from .decoding import Lookers
from .images import facts_of, reason
from .splitting import TEST, _check_folds, _draw, _drawn, _limit, _resolve_leaks, _too_small, digest_of
from .types import DataOptions, Example, PictureFacts, RawData, Row, RowOptions, Splits

if TYPE_CHECKING:
    from .splitting import Cells


AHEAD = 16  # pictures that each thread may have been given before the first is done


@dataclass(frozen=True)
class IdentifiedRows:
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
    return draw_splits(read_rows(options), options, make_task, strata)


def read_rows(options: RowOptions) -> IdentifiedRows:
    """Every row of the data, read once and identified. Raises DataError as ``load_data`` does."""
    return _identify(read_raw(options), options.on_bad)


def draw_splits(
    found: IdentifiedRows,
    options: DataOptions,
    make_task: Callable[[Sequence[Cells], Cells], Task],
    strata: Callable[[Sequence[Cells]], list[str]],
) -> tuple[Splits, Task]:
    """Rows → splits and their task; see ``load_data``."""
    raw, parts, notes = found.raw, found.by_split(), list(found.notes)
    if options.leaks == "keep":
        _limit(parts, options)
    settled = _resolve_leaks(parts, options.leaks)
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
    splits = replace(splits_as_given(found, parts), notes=(*raw.notes, *notes), settled=settled)
    give_back()
    return splits, task


def splits_as_given(found: IdentifiedRows, parts: dict[str, Examples] | None = None) -> Splits:
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


def read_raw(options: RowOptions) -> RawData:
    """The rows as their format reads them, as columns.

    Raises DataError for a path that does not exist or that not exactly one format knows, and DiskError
    where there is no room for the columns.
    """
    try:
        return _read_raw(options)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be opened: {error.strerror}") from error


def _read_raw(options: RowOptions) -> RawData:
    path, names = Path(options.path), plugins.names("formats")
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
        raise DataError(f'there is no format "{options.format}"; {did_you_mean(options.format, names)}')
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
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}

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


def rows_and_splits(options: RowOptions, kind: Kind) -> tuple[Examples, list[str | None], list[str]]:
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
        return _Look(file_digest(path), facts=facts)
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


def _identify(raw: RawData, on_bad: str) -> IdentifiedRows:
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
    return IdentifiedRows(replace(raw, rows=()), examples, tuple(unreadable), tuple(notes))


def content(example: Example) -> str:
    """The part of an id that stands for the inputs' content."""
    return example.id.partition("-")[0]


def check_cells(parts: Mapping[str, Sequence[Example]], task: Task, path: str) -> None:
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
