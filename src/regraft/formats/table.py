"""Table: CSV, JSON lines or Parquet, one row an example; or a folder with train, val and test tables.

Every value is read as text, so that the labels "NA", "007", "True" and "1.0" stay as they are. A list of labels in
JSON or Parquet becomes one cell, joined by the label separator. A row is named by its number in the file; the header
of a CSV is row 1. CSV cells may be separated by commas, semicolons, tabs or bars, which the header decides. A Parquet
cell may hold a picture's bytes. Class names that Hugging Face's datasets stores in a Parquet file are used.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from ..data.types import RawData, Row, RowOptions
from ..errors import DataError, did_you_mean, shorten
from ..io.progress import stage
from ._pictures import FOLLOW, content_of, unpack
from ._splits import NAMES, split_of

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

SURROGATES = re.compile("[\ud800-\udfff]")

DELIMITER_LINES = 20  # lines of a CSV file that decide its delimiter

CHUNK_BYTES = 1 << 20  # of a text file, read at once

PICTURE_BATCH_ROWS = 64  # rows of a Parquet file in memory at once, if cells hold pictures


@dataclass(frozen=True)
class Table:
    """Columns of a table, and a reader of the cells in some of them."""

    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[tuple[int, list[Any]]]]  # (row number, values)
    notes: tuple[str, ...] = ()


def detects(path: Path) -> bool:
    """Return whether the path is a table by its suffix, or a folder with a train table."""
    return (path.suffix.lower() in READERS and path.is_file()) or "train" in _tables(path).values()


def read(path: Path, options: RowOptions, labelled: bool = True) -> RawData:
    """Return the rows of a table, or of the tables of a folder. Unlabelled rows have no label cells.

    Raises DataError with the file and row for anything that does not read as a table.
    """
    raw, rows = stream(path, options, labelled)
    return replace(raw, rows=tuple(rows))


def stream(path: Path, options: RowOptions, labelled: bool = True) -> tuple[RawData, Iterator[Row]]:
    """Return what ``read`` returns, and an iterator over its rows. Reading them may raise DataError too."""
    files: dict[Path, str | None] = {path: None} if path.is_file() else _tables(path)
    if not files:
        expected = ", ".join(f"train{suffix}" for suffix in READERS)
        raise DataError(f"{path} is neither a table nor a folder with {expected}")
    tables = {f: _open(f) for f in files}
    chosen = {f: _choose(t.columns, f, options, labelled) for f, t in tables.items()}
    if len({bool(c.image) for c in chosen.values()}) > 1:
        raise DataError(f"{path}: some tables name pictures and some texts")
    rows = (r for f in files for r in _rows(f, tables[f], chosen[f], files[f]))
    first = next(iter(chosen.values()))
    notes = [note for table in tables.values() for note in table.notes]
    place = next(iter(files)).parent
    if path.is_dir() and (unused := sorted(p.name for p in _in(place) if p not in files)):
        notes.append(f"tables are left out because their names mean no split: {shorten(unused)}")
    return RawData("image" if first.image else "text", (), first.label, notes=tuple(notes)), rows


def column_cells(
    path: Path, options: RowOptions, names: Sequence[str], wanted: Container[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return an iterator over (place, cells) of the wanted rows that have all the named columns.

    ``wanted`` has places, as ``Row.where`` names them; the cells of other rows are not looked at.

    Raises DataError for a column that no table has, that occurs twice, or that is the label.
    """
    files = [path] if path.is_file() else list(_tables(path))
    tables = {f: _open(f) for f in files}
    for name in names:
        having = {f: t.columns.count(name) for f, t in tables.items() if name in t.columns}
        if not having:
            known = list(dict.fromkeys(c for t in tables.values() for c in t.columns))
            hint = did_you_mean(name, known)
            listed = "" if hint.startswith("there are") else f" (the columns are {shorten(known, 20)})"
            raise DataError(f'--slice: {path} has no column "{name}"{listed}; {hint}')
        if max(having.values()) > 1:
            raise DataError(f'--slice: {path} has the column "{name}" twice; rename one of them')
    for table in tables.values():
        for name in _label_columns(table.columns, options):
            if name in names:
                raise DataError(
                    f'--slice: "{name}" is the label column of {path}, and the report has a table of figures by class: '
                    "name another column"
                )
    whole = {f: t for f, t in tables.items() if set(names) <= set(t.columns)}
    return (cells for f, t in whole.items() for cells in _column_cells(f, t, names, wanted))


def _label_columns(columns: Sequence[str], options: RowOptions) -> tuple[str, ...]:
    return options.label or tuple(c for c in ("label",) if c in columns)


def _column_cells(
    path: Path, table: Table, names: Sequence[str], wanted: Container[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for number, values in table.rows(names):
        where = f"{path.name} row {number}"
        if where not in wanted:
            continue
        try:
            yield where, tuple(_text(v, c) for c, v in zip(names, values, strict=True))
        except ValueError as error:
            raise DataError(f"--slice: {where}: {error}; name a column of texts or numbers") from error


def _tables(folder: Path) -> dict[Path, str | None]:
    """Return the split of each table of a folder, or of its folder data/, by file name, train first.

    A split may have several files: train-00000-of-00002.parquet.
    """
    if not folder.is_dir():
        return {}
    for place in (folder, folder / "data"):
        splits = [(s, p) for p in _in(place) if (s := split_of(p.stem)) is not None]
        if splits:
            _refuse_twice(splits)
            order = ["train", "val", "test"]
            return {p: s for s, p in sorted(splits, key=lambda f: (order.index(f[0]), f[1]))}
    return {}


def _in(folder: Path) -> list[Path]:
    """Return the tables in a folder; none where the folder does not exist."""
    if not folder.is_dir():
        return []
    # Take regular files only, because opening a pipe would block.
    return [p for p in folder.iterdir() if p.suffix.lower() in READERS and p.is_file()]


def _refuse_twice(splits: Sequence[tuple[str, Path]]) -> None:
    """Raise DataError where a split has several tables that are not parts of one, because their rows would count
    twice."""
    for split in dict(splits):
        files = sorted(p for s, p in splits if s == split)
        if len({(re.sub(r"[\W\d_]+", " ", p.stem).strip(), p.suffix.lower()) for p in files}) > 1:
            raise DataError(
                f"{files[0].parent} has several tables for {split}: {shorten([p.name for p in files])}; keep "
                "one of them, or number them as parts of one (train-1.csv, train-2.csv)"
            )


# ---------------------------------------------------------------- columns


def _used(chosen: RowOptions) -> list[str]:
    """Return the columns that are used, the picture's first."""
    return [c for c in (chosen.image, *chosen.text, *chosen.label, chosen.split, chosen.group) if c]


def _choose(columns: list[str], path: Path, options: RowOptions, labelled: bool) -> RowOptions:
    """Return options that name the columns to use: those of the options, else those with the usual names.

    Raises DataError for a column that does not exist, occurs twice, or cannot be guessed.
    """
    if options.image and options.text:
        raise DataError("an input is a picture or a text, not both: give --image or --text")
    if len(options.text) > 2:
        raise DataError(f"an input is one text or a pair of texts, not {len(options.text)} text columns")

    there = f"the columns are {', '.join(columns)}"
    image, text, label = options.image, options.text, options.label if labelled else ()
    if not image and not text:
        guesses = [c for c in ("text", "image", "file") if c in columns and c not in label]
        if len(guesses) != 1:
            raise DataError(f"{path}: name the input column with --text or --image; {there}")
        text, image = (("text",), None) if guesses == ["text"] else ((), guesses[0])
    if labelled and not label:
        if "label" not in columns:
            raise DataError(f"{path}: name the label column with --label; {there}")
        label = ("label",)
    split = options.split or ("split" if "split" in columns and "split" not in label else None)
    if not labelled and split not in columns:
        split = None
    group = options.group if labelled else None
    chosen = replace(options, image=image, text=text, label=label, split=split, group=group)
    for name in _used(chosen):
        if name not in columns:
            raise DataError(f'{path} has no column "{name}"; {did_you_mean(name, columns)}')
    counts = Counter(columns)  # a spreadsheet may leave several unused columns without a name
    if twice := sorted({c for c in _used(chosen) if counts[c] > 1}):
        raise DataError(f"{path} has a column twice: {shorten(twice)}; rename one of them")
    return chosen


# ---------------------------------------------------------------- rows


def _rows(path: Path, table: Table, options: RowOptions, split: str | None) -> Iterator[Row]:
    """Yield the rows of one file. Raises DataError with all of their problems after the last row."""
    root = Path(options.image_root or path.parent).resolve()
    wanted = _used(options)
    count = 0
    problems: list[str] = []
    for number, values in table.rows(wanted):
        where = f"{path.name} row {number}"
        try:
            cell = {c: _cell(v, c, options) for c, v in zip(wanted, values, strict=True)}
            labels = tuple(cell[c] for c in options.label)
            missing = [c for c, v in zip(options.label, labels, strict=True) if not v.strip()]
            if missing and not options.empty_labels:
                raise ValueError(f'the label is empty (column "{missing[0]}")')
            inputs = tuple(cell[c] for c in options.text)
            if options.image:
                packed = content_of(values[0])
                inputs = (unpack(packed) if packed else _picture(root, cell[options.image], options),)
            named = split or (_split(cell[options.split]) if options.split else None)
            group = cell[options.group] or None if options.group else None
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        count += 1
        yield Row(inputs, labels, where, named, group)
    if problems:
        bad = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        raise DataError(f"{path} has {bad}: {shorten(problems)}; correct or remove them")
    if not count:
        raise DataError(f"{path} has no rows")


def _cell(value: Any, column: str, options: RowOptions) -> str:
    """Return a cell as text. Raises ValueError for a value that does not suit its column."""
    if column == options.image:
        if content_of(value) is not None:
            return ""
        return _text(value.get("path") if isinstance(value, dict) else value, column)
    if column in options.label:
        if isinstance(value, list):
            return _labels(value, column, options)
        if isinstance(value, str) and re.match(r"""\[\s*['"].*['"]\s*\]$""", value.strip(), re.DOTALL):
            raise ValueError(
                f'column "{column}" holds a list written as text ({value.strip()[:40]}): write the '
                f'labels with "{options.label_separator}" between them'
            )
    return _text(value, column)


def _labels(values: list[Any], column: str, options: RowOptions) -> str:
    """Return a list of labels as one cell. Raises ValueError where the cell would not give the list back."""
    labels = [_text(v, column) for v in values]
    if len(labels) > 1 and not options.empty_labels:
        raise ValueError(f'column "{column}" holds a list of {len(labels)} labels: give --task multilabel')
    separator = options.label_separator
    if options.empty_labels and (held := [label for label in labels if separator in label]):
        raise ValueError(
            f'the label "{held[0]}" contains the separator "{separator}": choose one that no label '
            'contains, such as --set task.separator="|"'
        )
    return separator.join(labels)


def _text(value: Any, column: str) -> str:
    """Return a value as text, or "" for a missing value. Raises ValueError for a value that is no text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes | dict | list):
        what = "a list" if isinstance(value, list) else type(value).__name__
        raise ValueError(f'column "{column}" holds {what}, not text')
    if "\0" in (text := str(value)):
        raise ValueError(f'a NUL character in column "{column}"')
    if SURROGATES.search(text):  # JSON can escape a lone surrogate, UTF-8 cannot encode it
        raise ValueError(f'half a character in column "{column}" (a lone surrogate)')
    return text


def _split(name: str) -> str:
    """Return "train", "val" or "test" for a cell of the split column. Raises ValueError for another name."""
    split = split_of(name)
    if split is None:
        raise ValueError(f'the split is "{name}"; there are: {", ".join(NAMES)}')
    return split


def _picture(root: Path, name: str, options: RowOptions) -> str:
    """Return the path of a picture that a row names. It must lie inside the root.

    Follows a link out of the root only with ``follow_links``. Raises ValueError for a path that leads elsewhere.
    """
    if not name.strip():
        raise ValueError("the picture's path is empty")
    path = root / name
    if "\\" in name and not path.exists():  # the table was written on Windows
        path = root / PureWindowsPath(name).as_posix()
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f'"{name}" leads nowhere: its links form a circle') from error
    if not inside:
        if not Path(os.path.normpath(path)).is_relative_to(root):
            raise ValueError(f'"{name}" lies outside {root} (--image-root FOLDER moves the root)')
        if not options.follow_links:
            raise ValueError(f'"{name}" is a link out of {root} ({FOLLOW})')
    return str(path)


# ---------------------------------------------------------------- readers


def _open(path: Path) -> Table:
    """Open a table by its suffix. Raises DataError for another suffix."""
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} is not a table; the name of a table ends with {', '.join(READERS)}")
    return READERS[path.suffix.lower()](path)


def _check_text(path: Path) -> None:
    """Raise DataError for a file that is empty or not UTF-8; the message has the first bad byte."""
    # in chunks, because a file without a line end would be read whole
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, rows, empty = 0, 0, True  # bytes and line ends before a chunk
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            held = len(decoder.getstate()[0])  # bytes of a character that begins in an earlier chunk
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                row = rows + error.object.count(b"\n", 0, error.start) + 1
                raise DataError(
                    f"{path} is not UTF-8 text: byte {before - held + error.start} (row {row}) is "
                    f"0x{error.object[error.start]:02x}; save the table as UTF-8"
                ) from error
            empty = empty and not text.removeprefix("\ufeff").strip()
            if not chunk:
                break
            before += len(chunk)
            rows += chunk.count(b"\n")
    if empty:
        raise DataError(f"{path} is empty")


class _Counted(io.FileIO):
    """A file that reports how much of it was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stage = stage(f"reading {path.name}", path.stat().st_size, "bytes")

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self.stage.advance(count or 0)
        return count


def _opened(path: Path, newline: str) -> io.TextIOWrapper:
    """Open a text file whose lines end with ``newline``."""
    raw = io.BufferedReader(_Counted(path), CHUNK_BYTES)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)


def _delimiter(path: Path, first: Sequence[str]) -> str:
    """Return the character between cells, from a table's first lines; the first of them is the header.

    Candidates are the characters that give every line as many cells as the header. The one with the most cells wins.
    Where there is no candidate, as with cells of several lines, all characters compete.
    """
    if path.suffix.lower() == ".tsv":
        return "\t"
    cells = {d: [len(next(csv.reader([line], delimiter=d), [])) for line in first] for d in DELIMITERS}
    even = [d for d, counts in cells.items() if counts and counts[0] > 1 and len(set(counts)) == 1]
    return max(even or DELIMITERS, key=lambda d: cells[d][:1])  # the first of equals: a comma


def _csv(path: Path) -> Table:
    """Open a CSV or TSV file. Raises DataError where its text does not read as CSV."""
    csv.field_size_limit(2**31 - 1)  # allow cells that hold long documents
    _check_text(path)
    with _opened(path, "") as lines:
        first = list(itertools.islice((line for line in lines if line.strip()), DELIMITER_LINES))
    excel_line = re.fullmatch(r'"?sep=(.)"?[\r\n]*', "".join(first[:1]), re.IGNORECASE)  # Excel's own line
    delimiter = excel_line[1] if excel_line else _delimiter(path, first)

    def records() -> Iterator[tuple[int, list[str]]]:
        number = 0
        with _opened(path, "") as lines:
            if excel_line:
                next(line for line in lines if line.strip())
            # Be strict, because an open quote would otherwise read the rest of the file as one cell.
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            try:
                for number, record in enumerate(reader, 2 if excel_line else 1):
                    yield number, record
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{path} row {number + 1} is not CSV: {error}") from error

    def header(numbered: Iterator[tuple[int, list[str]]]) -> list[str]:
        return [c.strip() for c in next((r for _, r in numbered if any(r)), [])]

    columns = header(records())

    def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        places = [columns.index(c) for c in wanted]
        numbered = records()
        header(numbered)
        for number, record in numbered:
            if not any(record):
                continue  # a blank line, or an empty row of a spreadsheet
            if len(record) < len(columns) or any(record[len(columns) :]):
                raise DataError(
                    f"{path} row {number} has {len(record)} cells where the header has "
                    f"{len(columns)}; is a {DELIMITERS.get(delimiter, delimiter)[:-1]} or a quote missing?"
                )
            yield number, [record[p] for p in places]

    note = f"{path.name} has {DELIMITERS.get(delimiter, repr(delimiter))} between its cells"
    usual = delimiter == ("\t" if path.suffix.lower() == ".tsv" else ",")
    return Table(columns, rows, () if usual else (note,))


def _jsonl(path: Path) -> Table:
    """Open a file of JSON lines. Raises DataError where a line is no JSON object.

    Numbers stay as they are written. A missing key is a missing value.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        with _opened(path, "\n") as lines:
            for number, line in enumerate(lines, 1):
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
                    raise DataError(f'{path} row {number} is not a JSON object like {{"label": "a"}}')
                yield number, record

    _check_text(path)
    columns: dict[str, None] = {}
    for _, record in records():  # read all rows first, because any row may add a column
        columns |= dict.fromkeys(record)

    def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        return ((number, [record.get(c) for c in wanted]) for number, record in records())

    return Table(list(columns), rows)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the class names that Hugging Face's datasets stores beside columns of numbers."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names_of = {column: _names_in(about) for column, about in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {column: names for column, names in names_of.items() if names}


def _names_in(about: Any) -> list[str]:
    """Return the names of a ClassLabel, also of one inside a list."""
    about = about[0] if isinstance(about, list) and about else about
    about = about.get("feature", about) if isinstance(about, dict) else {}
    names = about.get("names") if isinstance(about, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return []
    return names if len(set(names)) == len(names) else []  # equal names would merge classes


def _named(value: Any, names: list[str]) -> Any:
    """Return the class that a number means; -1 is a missing label. Raises ValueError for a number without a name."""
    if isinstance(value, list):
        return [_named(v, names) for v in value]
    if type(value) is not int:
        return value
    if value >= len(names):
        raise ValueError(f"the label {value} has no name: the file gives {len(names)} names")
    return names[value] if value >= 0 else None


def _parquet(path: Path) -> Table:
    """Open a Parquet file. Raises DataError where it does not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pyarrow raises ArrowException, OSError, OverflowError, UnicodeDecodeError and others for damaged files.
    try:
        file = pq.ParquetFile(path)
        columns = list(file.schema_arrow.names)
        classes = _class_names(file.schema_arrow.metadata)
    except Exception as error:  # as above
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    kinds = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    packed = {f.name for f in file.schema_arrow if any(is_kind(f.type) for is_kind in kinds)}

    def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        number = 0
        progress = stage(f"reading {path.name}", file.metadata.num_rows)
        size = PICTURE_BATCH_ROWS if packed & set(wanted) else 65_536
        batches = file.iter_batches(size, columns=list(dict.fromkeys(wanted)))
        while True:
            try:
                batch = next(batches, None)
                values = [] if batch is None else [batch.column(c).to_pylist() for c in wanted]
                values = [
                    [_named(v, classes[c]) for v in column] if c in classes else column
                    for c, column in zip(wanted, values, strict=bool(values))
                ]
            except Exception as error:  # as above
                raise DataError(f"{path} does not read after row {number}: {error}") from error
            if batch is None:
                return
            for record in zip(*values, strict=True):
                number += 1
                yield number, list(record)
            progress.advance(len(batch))

    notes = [f"{path.name}: the classes of {c} have the names that the file stores" for c in classes]
    return Table(columns, rows, tuple(notes))


READERS: dict[str, Callable[[Path], Table]] = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
