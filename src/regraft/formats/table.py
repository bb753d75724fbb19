"""A table: CSV, JSON lines or Parquet, a row an example; or a folder with train, val, test tables.

Every value is read as text, so that the labels "NA", "007", "True" and "1.0" stay what they are. A
list of labels in JSON or Parquet becomes one cell, joined by the label separator. A row is named by
its number in the file; in CSV the header is row 1.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean, shorten
from ..types import DataOptions, RawData, Row

SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}

# A table as it is read: its columns, and wanted columns → (row number, values) of each row.
Table = tuple[list[str], Callable[[Sequence[str]], Iterator[tuple[int, list[Any]]]]]


def detects(path: Path) -> bool:
    """Whether the path is a table by its suffix, or a folder with a train table."""
    return (path.suffix.lower() in READERS and path.is_file()) or "train" in _tables(path).values()


def read(path: Path, options: DataOptions, labelled: bool = True) -> RawData:
    """The rows of a table, or of the tables of a folder. Unlabelled rows have no cells.

    Raises DataError with the file and row for anything that does not read as a table.
    """
    files: dict[Path, str | None] = {path: None} if path.is_file() else _tables(path)
    if not files:
        raise DataError(f"{path} is no table, nor a folder with {_expected()}")
    tables = {f: _open(f) for f in files}
    chosen = {f: _choose(columns, f, options, labelled) for f, (columns, _) in tables.items()}
    if len({bool(c.image) for c in chosen.values()}) > 1:
        raise DataError(f"{path}: some tables name pictures and some texts")
    rows = [r for f in files for r in _rows(f, tables[f], chosen[f], files[f], options)]
    first = next(iter(chosen.values()))
    return RawData("image" if first.image else "text", tuple(rows), first.label)


def _expected() -> str:
    return ", ".join(f"train{suffix}" for suffix in READERS)


def _tables(folder: Path) -> dict[Path, str | None]:
    """Split of each table of a folder, by file name, train first."""
    if not folder.is_dir():
        return {}
    found = [p for p in folder.iterdir() if p.suffix.lower() in READERS and p.stem in SPLITS]
    found = [p for p in found if p.is_file()]  # a pipe would be waited for without end
    order = list(SPLITS)
    return {p: SPLITS[p.stem] for p in sorted(found, key=lambda p: (order.index(p.stem), p))}


# ---------------------------------------------------------------- columns


@dataclass(frozen=True)
class _Columns:
    image: str | None
    text: tuple[str, ...]
    label: tuple[str, ...]
    split: str | None
    group: str | None

    def all(self) -> list[str]:
        return [c for c in (self.image, *self.text, *self.label, self.split, self.group) if c]


def _choose(columns: list[str], path: Path, options: DataOptions, labelled: bool) -> _Columns:
    """The columns that are used: those named, else those with the usual names.

    Raises DataError for a column that does not exist, occurs twice, or cannot be guessed.
    """
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        raise DataError(f"{path} has a column twice: {shorten(twice)}; rename one of them")
    if options.image and options.text:
        raise DataError("inputs are a picture or a text, not both: give --image or --text")
    if len(options.text) > 2:
        raise DataError(f"inputs are one text or a pair, not {len(options.text)} text columns")

    there = f"the columns are {', '.join(columns)}"
    image, text, label = options.image, options.text, options.label if labelled else ()
    if not image and not text:
        guesses = [c for c in ("text", "image", "file") if c in columns and c not in label]
        if len(guesses) != 1:
            raise DataError(f"{path}: say which column is the input: --text or --image; {there}")
        text, image = (("text",), None) if guesses == ["text"] else ((), guesses[0])
    if labelled and not label:
        if "label" not in columns:
            raise DataError(f"{path}: say which column is the label: --label NAME; {there}")
        label = ("label",)
    split = options.split or ("split" if "split" in columns and "split" not in label else None)
    if not labelled and split not in columns:
        split = None
    group = options.group if labelled else None
    chosen = _Columns(image, text, label, split, group)
    for name in chosen.all():
        if name not in columns:
            raise DataError(f'{path} has no column "{name}"; {did_you_mean(name, columns)}')
    return chosen


# ---------------------------------------------------------------- rows


def _rows(
    path: Path, table: Table, chosen: _Columns, split: str | None, options: DataOptions
) -> list[Row]:
    """The rows of one file; their problems are collected and raised once."""
    root = (options.image_root or path.parent).resolve()
    wanted = chosen.all()
    rows: list[Row] = []
    problems: list[str] = []
    for number, values in table[1](wanted):
        where = f"{path.name} row {number}"
        try:
            cell = {
                c: _text(v, c, options.label_separator) for c, v in zip(wanted, values, strict=True)
            }
            labels = tuple(cell[c] for c in chosen.label)
            missing = [c for c, v in zip(chosen.label, labels, strict=True) if not v.strip()]
            if missing and not options.empty_labels:
                raise ValueError(f'the label is empty (column "{missing[0]}")')
            inputs = tuple(cell[c] for c in chosen.text)
            if chosen.image:
                inputs = (_picture(root, cell[chosen.image]),)
            named = split or (_split(cell[chosen.split]) if chosen.split else None)
            group = cell[chosen.group] or None if chosen.group else None
            rows.append(Row(inputs, labels, where, named, group))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        raise DataError(f"{path} has {count}: {shorten(problems)}; mend or remove them")
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _text(value: Any, column: str, separator: str) -> str:
    """A value as text; "" where it is missing. ValueError for what is no text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        return separator.join(_text(v, column, separator) for v in value)
    if isinstance(value, bytes | dict):
        raise ValueError(f'column "{column}" holds {type(value).__name__}, not text')
    if "\0" in (text := str(value)):
        raise ValueError(f'a NUL character in column "{column}"')
    if any("\ud800" <= c <= "\udfff" for c in text):  # which JSON may escape, and UTF-8 has none
        raise ValueError(f'half a character in column "{column}" (a lone surrogate)')
    return text


def _split(name: str) -> str:
    if name.strip().lower() not in SPLITS:
        raise ValueError(f'the split is "{name}"; there are: {", ".join(SPLITS)}')
    return SPLITS[name.strip().lower()]


def _picture(root: Path, name: str) -> str:
    """The path of a picture that a row names, which must lie inside the root."""
    if not name.strip():
        raise ValueError("the picture's path is empty")
    path = root / name
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f'"{name}" leads nowhere: its links go round in a circle') from error
    if not inside:
        raise ValueError(f'"{name}" lies outside {root} (--image-root FOLDER moves the root)')
    return str(path)


# ---------------------------------------------------------------- readers


def _open(path: Path) -> Table:
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} is no table; a table ends in {', '.join(READERS)}")
    return READERS[path.suffix.lower()](path)


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} (row {row}) is "
            f"0x{data[error.start]:02x}; save the table as UTF-8"
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def _csv(path: Path) -> Table:
    csv.field_size_limit(2**31 - 1)  # a long document is a text like any other
    # strict: a quote that is never closed would otherwise swallow the rest of the file
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)

    def records() -> Iterator[tuple[int, list[str]]]:
        number = 0
        try:
            for number, record in enumerate(reader, 1):
                yield number, record
        except csv.Error as error:
            raise DataError(f"{path} row {number + 1} is not CSV: {error}") from error

    lines = records()
    columns = next(lines)[1]

    def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        places = [columns.index(c) for c in wanted]
        for number, record in lines:
            if record and len(record) != len(columns):
                raise DataError(
                    f"{path} row {number} has {len(record)} cells where the header has "
                    f"{len(columns)}; is a comma or a quote missing?"
                )
            if record:  # a blank line is no row
                yield number, [record[p] for p in places]

    return columns, rows


def _jsonl(path: Path) -> Table:
    # numbers stay as they are written; a missing key is a missing value
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    records: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(
                line,
                object_pairs_hook=unique,
                parse_int=str,
                parse_float=str,
                parse_constant=lambda word: None if word == "NaN" else word,
            )
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} row {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f'{path} row {number} is no JSON object, such as {{"label": "a"}}')
        records.append((number, record))

    def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        return ((number, [record.get(c) for c in wanted]) for number, record in records)

    return list(dict.fromkeys(key for _, record in records for key in record)), rows


def _parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    # a damaged file makes arrow raise ArrowException, OSError, OverflowError, UnicodeDecodeError, …
    try:
        file = pq.ParquetFile(path)
        columns = list(file.schema_arrow.names)
    except Exception as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error

    def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        number = 0
        batches = file.iter_batches(columns=list(dict.fromkeys(wanted)))
        while True:
            try:
                batch = next(batches, None)
                values = [] if batch is None else [batch.column(c).to_pylist() for c in wanted]
            except Exception as error:
                raise DataError(f"{path} does not read after row {number}: {error}") from error
            if batch is None:
                return
            for record in zip(*values, strict=True):
                number += 1
                yield number, list(record)

    return columns, rows


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
