"""Data of a plan: read, checked, identified by content, split once, and the task made from train.

All of this is a function of the rows' contents and of the split seed. Reordering the rows or renaming the
files of a table changes neither an id nor a split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import plugins
from ..compute.arrays import Kind
from ..compute.malloc import give_back
from ..errors import DataError, did_you_mean, shorten
from ..io.hashing import file_digest
from ..io.progress import stage
from ..tasks import Task
from .columns import Cells, Examples, IdentifiedRows, StoredRows, identified, stored, stored_facts
from .decoding import Lookers
from .images import facts_of, reason
from .splitting import check_cells, draw_splits
from .types import DataOptions, PictureFacts, RawData, Row, RowOptions, Splits

PENDING_PER_THREAD = 16  # images given to the threads ahead of the one that is asked for


def load_data(
    options: DataOptions,
    make_task: Callable[[Sequence[Cells], Cells], Task],
    strata: Callable[[Sequence[Cells]], list[str]],
) -> tuple[Splits, Task]:
    """Read the data of a plan; return their splits and their task.

    ``make_task(train cells, column names)`` makes the task from the train rows that the data bring, before
    any row is drawn from them. ``strata`` names a stratum for each row.

    Raises DataError for data that cannot be used as they are, with every bad row counted.
    """
    return draw_splits(read_rows(options), options, make_task, strata)


def read_rows(options: RowOptions) -> IdentifiedRows:
    """Read and identify every row of the data. Raises DataError as ``load_data`` does."""
    return identify(read_raw(options), options.on_bad)


def rows_and_splits(options: RowOptions, kind: Kind) -> tuple[Examples, list[str | None], list[str]]:
    """Return every row of the data, the split that they name for it, and notes; labels are not checked.

    Raises DataError for inputs of another kind.
    """
    raw = read_raw(options)
    if raw.kind != kind:
        raise DataError(f"{options.path} holds {raw.kind}s and the run takes {kind}s")
    rows = identify(raw, options.on_bad)
    return rows.examples, rows.split_names, list(rows.notes)


def rows_of(options: DataOptions, task: Task, kind: Kind) -> tuple[Examples, str]:
    """Return the rows to evaluate a finished run on, and their name: the data's test rows, else all rows.

    Raises DataError for inputs of another kind and for labels that the task does not know.
    """
    examples, names, _ = rows_and_splits(options.for_task(task), kind)
    parts = {"all rows": examples}
    if "test" in names:
        parts = {"test rows": examples.take([i for i, name in enumerate(names) if name == "test"])}
    check_cells(parts, task, options.path)
    ((which, rows),) = parts.items()
    return rows, which


# ---------------------------------------------------------------- reading


def read_raw(options: RowOptions) -> RawData:
    """Read the rows of the data, as columns, in the format that knows their path.

    Raises DataError for a path that does not exist or that not exactly one format knows. Raises DiskError
    where the disk has no room for the columns.
    """
    try:
        return _read_raw(options)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be opened: {error.strerror}") from error


def _read_raw(options: RowOptions) -> RawData:
    path = Path(options.path)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"; {did_you_mean(path.name, beside)}" if 0 < len(beside) < 50 else ""
        raise DataError(f"{path} does not exist{hint}")
    refuse_archive(path)
    module = plugins.module("formats", format_name(path, options.format))
    raw: RawData
    rows: Iterable[Row]
    if hasattr(module, "stream"):
        raw, rows = module.stream(path, options)
    else:
        raw = module.read(path, options)
        rows = raw.rows
    return replace(raw, rows=stored(rows))


def format_name(path: Path, wanted: str) -> str:
    """Return the name of the format to read a path with; ``wanted`` "auto" asks every format.

    Raises DataError where not exactly one format knows the path, or there is no such format.
    """
    names = plugins.names("formats")
    if wanted in names:
        return wanted
    if wanted != "auto":
        raise DataError(f'there is no format "{wanted}"; {did_you_mean(wanted, names)}')
    fitting = [name for name in names if plugins.module("formats", name).detects(path)]
    if len(fitting) > 1:
        raise DataError(f"{path} could be read as {' or '.join(fitting)}: say --format NAME")
    if not fitting:
        raise DataError(
            f"{path} is none of: a folder with CLASS/*.jpg or train/CLASS/*.jpg; a table "
            "(.csv, .tsv, .jsonl, .parquet); a folder with a train table. Where a folder has a "
            "table and pictures, give the table"
        )
    return fitting[0]


ARCHIVE_STARTS = {  # first bytes → name; a file's name proves nothing
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
    """Raise DataError for an archive.

    regraft opens none, because one may unpack to more than the disk holds, or to places outside its folder.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(262)
    kind = next((kind for magic, kind in ARCHIVE_STARTS.items() if start.startswith(magic)), None)
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


# ---------------------------------------------------------------- identity


@dataclass(frozen=True, slots=True)
class RowContent:
    """Digest and state of a row's inputs, from one look at them."""

    digest: str  # sha256 of the inputs
    problem: str | None = None  # why the inputs cannot be used
    facts: PictureFacts | None = None  # of an image


def identify(raw: RawData, on_bad: str) -> IdentifiedRows:
    """Hash the inputs of every row; return the usable rows sorted by content.

    Raises DataError for unusable inputs, all of them counted; ``on_bad`` "skip" leaves them out. Raises
    DataError where no row is left.
    """
    rows = raw.rows if isinstance(raw.rows, StoredRows) else stored(raw.rows)
    digests, usable = bytearray(32 * len(rows)), np.ones(len(rows), bool)
    unreadable: list[tuple[str, str]] = []
    half_empty = 0  # rows with one empty text of two

    def facts_of_rows() -> Iterator[PictureFacts | None]:
        nonlocal half_empty
        looks = stage("hashing rows", len(rows)).over(look_at_rows(raw.kind, rows))
        for i, (row, look) in enumerate(looks):
            if look.problem:
                usable[i] = False
                unreadable.append((row.where, look.problem))
            else:
                digests[32 * i : 32 * i + 32] = bytes.fromhex(look.digest)
                half_empty += raw.kind == "text" and not all(t.strip() for t in row.inputs)
            yield look.facts

    if raw.kind == "image":
        facts = stored_facts(facts_of_rows())
    else:
        facts = None
        deque(facts_of_rows(), maxlen=0)
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
    if half_empty:
        notes.append(f"{half_empty} of {usable.sum()} rows have one empty text of two")
    examples = identified(rows, np.frombuffer(digests, np.uint8).reshape(-1, 32), usable, facts)
    give_back()
    return IdentifiedRows(replace(raw, rows=()), examples, tuple(unreadable), tuple(notes))


def look_at_rows(kind: Kind, rows: Iterable[Row]) -> Iterator[tuple[Row, RowContent]]:
    """Yield each row with its content. Threads decode images ahead of the one that is asked for."""
    if kind != "image":
        yield from ((row, look_at_row(kind, row)) for row in rows)
        return
    threads = os.cpu_count() or 1
    begun: deque[tuple[Row, Future[RowContent]]] = deque()
    # Pillow and hashlib release the GIL
    with ThreadPoolExecutor(threads) as pool, Lookers() as lookers:
        for row in rows:
            begun.append((row, pool.submit(look_at_row, kind, row, lookers.look)))
            if len(begun) == PENDING_PER_THREAD * threads:
                first, look = begun.popleft()
                yield first, look.result()
        yield from ((row, look.result()) for row, look in begun)


def look_at_row(kind: str, row: Row, look_at: Callable[[Path], PictureFacts] = facts_of) -> RowContent:
    """Hash a row's inputs and check that they can be used."""
    if kind != "image":
        # JSON tells a pair from one text that holds the separator
        text = json.dumps(row.inputs, ensure_ascii=True)
        empty = not any(t.strip() for t in row.inputs)  # a review may have a title alone
        return RowContent(hashlib.sha256(text.encode()).hexdigest(), "the text is empty" if empty else None)
    path = Path(row.inputs[0])
    try:
        facts = look_at(path)
        return RowContent(file_digest(path), facts=facts)
    except DataError as error:
        problem = reason(error)
    return RowContent("", problem if row.where.endswith(path.name) else f"{path.name}: {problem}")
