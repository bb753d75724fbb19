"""Rows as columns of a mapped Arrow file, and examples that are made on demand.

A Python object takes 1.7 kB a row, where a text has 131 bytes. So texts, label cells, places and groups lie
in a temporary file without a name, which the system removes when the process ends. Memory holds 20 bytes a
row: the first 64 bits of the content's hash, the number of the occurrence, and the row's place in a split.
See docs/decisions/027-rows-are-columns.md.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..errors import DiskError
from .types import Example, PictureFacts, RawData, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.int64]


Cells = tuple[str, ...]

MAX_BYTES_IN_MEMORY = 1 << 24  # a larger table lies in a file; 0 would be no limit

BATCH_ROWS = 1 << 12  # of a record batch in the file

BLOCK_ROWS = 1 << 12  # made into objects at once

MAX_BATCH_BYTES = 1 << 24  # of texts, where rows are long

MAX_SHARED_VALUES = 1 << 16  # distinct label cells or groups whose equal values share an object

MAX_KEPT_ROWS, MAX_KEPT_SIZE = 1 << 12, 1 << 24  # objects of rows that are asked for one by one, and their characters

FACTS = ("format", "mode", "width", "height", "deep", "animated", "orientation", "hash", "mirrored", "thumb")


# ---------------------------------------------------------------- the file


class Mapped:
    """An Arrow table in a file without a name, or in memory where it is small."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.starts = np.cumsum([0, *map(len, batches)])  # of each batch, and the end
        row_bytes = sum(batch.nbytes for batch in batches) // max(1, len(self))
        self.block_rows = max(1, min(BLOCK_ROWS, MAX_BATCH_BYTES // max(1, row_bytes)))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, places: Places, columns: Sequence[str]) -> Any:
        """Return the rows at ``places`` as an Arrow table, in that order."""
        import pyarrow as pa

        batch = np.searchsorted(self.starts, places, side="right") - 1
        order = np.argsort(batch, kind="stable")
        edges = np.searchsorted(batch[order], np.arange(len(self.batches) + 1))
        parts = []
        for i in np.unique(batch).tolist():
            there = places[order[edges[i] : edges[i + 1]]] - self.starts[i]
            parts.append(self.batches[i].select(columns).take(pa.array(there)))
        if not parts:
            return pa.table({name: [] for name in columns})
        table = pa.Table.from_batches(parts)
        if (batch[1:] >= batch[:-1]).all():
            return table
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return table.take(pa.array(back))

    def row(self, place: int, columns: Sequence[str]) -> list[Any]:
        """Return the values of one row."""
        batch = int(np.searchsorted(self.starts, place, side="right")) - 1
        at = int(place - self.starts[batch])
        return [self.batches[batch][name][at].as_py() for name in columns]

    def blocks(self, places: Places) -> Iterator[Places]:
        """Yield the places in blocks of rows that are made into objects at once."""
        for at in range(0, len(places), self.block_rows):
            yield places[at : at + self.block_rows]

    def lists(self, places: Places, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """Yield columns as lists, block by block."""
        for block in self.blocks(places):
            yield self.take(block, columns).to_pydict()


def mapped(batches: Iterable[Any], schema: Any) -> Mapped:
    """Write record batches to a temporary file as they come, and map it.

    Raises DiskError where the disk has no room.
    """
    import pyarrow as pa

    with tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY) as file:
        with naming_the_folder():
            writer = pa.ipc.new_file(file, schema)
        for batch in batches:
            with naming_the_folder():
                writer.write_batch(batch)
        with naming_the_folder():
            writer.close()
            if file.tell() > MAX_BYTES_IN_MEMORY:
                file.flush()
                buffer: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                file.seek(0)
                buffer = file.read()
    pa.default_memory_pool().release_unused()  # Arrow would keep what the batches took
    reader = pa.ipc.open_file(pa.py_buffer(buffer))
    return Mapped([reader.get_batch(i) for i in range(reader.num_record_batches)])


@contextmanager
def naming_the_folder() -> Iterator[None]:
    """Raise DiskError, with the remedy, for an OSError inside the block."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"the table of rows cannot be written ({error.strerror or error}): make room in the "
            f"folder of temporary files, or name another one in the environment variable TMPDIR"
        ) from error


# ---------------------------------------------------------------- rows as a format gives them


def row_fields() -> list[Any]:
    """Return the Arrow fields of a row. They are bytes, because a file name may be no text."""
    import pyarrow as pa

    text = pa.large_binary()
    return [
        pa.field("inputs", pa.list_(text)),
        pa.field("cells", pa.list_(text)),
        pa.field("where", pa.binary()),
        pa.field("characters", pa.int32()),  # of ``where``
        pa.field("split", pa.binary()),
        pa.field("group", text),
    ]


def stored(rows: Iterable[Row]) -> StoredRows:
    """Return rows as columns. Takes one row at a time."""
    import pyarrow as pa

    schema = pa.schema(row_fields())
    return StoredRows(mapped((row_batch(part, schema) for part in parts_of(rows)), schema))


def parts_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each record batch."""
    part: list[Row] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += sum(map(len, row.inputs)) + sum(map(len, row.cells))
        if len(part) == BATCH_ROWS or characters >= MAX_BATCH_BYTES:
            yield part
            part, characters = [], 0
    if part:
        yield part


def row_batch(rows: list[Row], schema: Any) -> Any:
    """Return rows as a record batch."""
    import pyarrow as pa

    columns = [
        [list(map(encoded, r.inputs)) for r in rows],
        [list(map(encoded, r.cells)) for r in rows],
        [encoded(r.where) for r in rows],
        [len(r.where) for r in rows],
        [None if r.split is None else encoded(r.split) for r in rows],
        [None if r.group is None else encoded(r.group) for r in rows],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def decoded_or_none(data: bytes | None) -> str | None:
    return None if data is None else decoded(data)


class StoredRows(Sequence[Row]):
    """Rows as a format gave them, in its order. A Row is made on demand."""

    def __init__(self, table: Mapped) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        places = np.arange(len(self))[i]
        return list(self.at(places)) if isinstance(i, slice) else next(self.at(places.reshape(1)))

    def __iter__(self) -> Iterator[Row]:
        return self.at(np.arange(len(self)))

    def at(self, places: Places) -> Iterator[Row]:
        """Yield the rows at some places."""
        for block in self.table.lists(places, ["inputs", "cells", "where", "split", "group"]):
            for inputs, cells, where, split, group in zip(*block.values(), strict=True):
                yield Row(
                    tuple(map(decoded, inputs)),
                    tuple(map(decoded, cells)),
                    decoded(where),
                    decoded_or_none(split),
                    decoded_or_none(group),
                )


# ---------------------------------------------------------------- rows with their identity


def identified(
    rows: StoredRows, digests: NDArray[np.uint8], usable: NDArray[np.bool_], facts: Mapped | None
) -> Examples:
    """Return the usable rows as examples, sorted by content.

    ``digests`` [N, 32] are the sha256 of the inputs, ``usable`` [N] the rows to take. Rows with the same
    inputs are numbered by their other cells, not by their order.
    """
    import pyarrow as pa

    heads = digests[:, :8].copy().view(">u8").ravel().astype(np.uint64)
    order = np.flatnonzero(usable)
    order = order[np.argsort(heads[order], kind="stable")]
    keys = heads[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]][: len(keys)])
    lengths = np.diff(np.r_[starts, len(keys)])
    again = np.flatnonzero(np.repeat(lengths > 1, lengths))  # rows whose content occurs more than once
    many = zip(again.tolist(), order[again].tolist(), rows.at(order[again]), strict=True)
    for _, run in groupby(many, key=lambda one: keys[one[0]]):
        same = sorted(run, key=lambda one: (bytes(digests[one[1]]), *distinct(one[2])))
        first = min(place for place, _, _ in same)
        order[first : first + len(same)] = [row for _, row, _ in same]
    numbers = (np.arange(len(keys)) - np.repeat(starts, lengths)).astype(np.int32)

    fields = [*row_fields(), *(fact_fields() if facts else [])]
    schema = pa.schema(fields)

    def batches() -> Iterator[Any]:  # in the order of the examples, because they are read in it
        for part in rows.table.blocks(order):
            table = rows.table.take(part, [f.name for f in row_fields()])
            columns = list(table.columns)
            if facts:
                columns += facts.take(part, FACTS).columns
            whole = pa.table(columns, schema=schema)
            yield from whole.combine_chunks().to_batches()

    content = Content(mapped(batches(), schema), keys, numbers, facts is not None)
    return Examples(content, np.arange(len(keys)))


@dataclass(frozen=True)
class IdentifiedRows:
    """The usable rows of a data set, sorted by content, and what was left out."""

    raw: RawData  # as the format gave it, without its rows
    examples: Examples
    unreadable: tuple[tuple[str, str], ...] = ()  # (where, why) of rows whose inputs cannot be used
    notes: tuple[str, ...] = ()  # for people

    @property
    def split_names(self) -> list[str | None]:
        """Return the split that the data name for each row; None where they name none."""
        return splits_of(self.examples)

    def by_split(self) -> dict[str, Examples]:
        """Return the rows of train, val and test; rows for which no split is named are train."""
        names = ["train", "val", "test"]
        numbers = (names.index(split or "train") for split in self.split_names)
        number = np.fromiter(numbers, np.int8, len(self.examples))
        return {name: self.examples.take(number == i) for i, name in enumerate(names)}


def distinct(row: Row) -> tuple[Any, ...]:
    """Return the sort key of rows with the same inputs."""
    return row.cells, row.split or "", row.group or "", row.where


class Content:
    """Rows of all splits, sorted by content."""

    def __init__(self, table: Mapped, keys: NDArray[np.uint64], numbers: NDArray[np.int32], pictures: bool) -> None:
        self.table, self.pictures = table, pictures
        self.keys = keys  # [N], the first 64 bits of the hash of each row's inputs
        self.numbers = numbers  # [N], count of the rows before that have the same key
        self.kept: dict[int, Example] = {}  # the first that were asked for one by one, by place
        self.kept_size = 0  # characters of their inputs

    def ids(self, places: Places) -> list[str]:
        """Return the ids of the rows at some places."""
        keys, numbers = self.keys[places].tolist(), self.numbers[places].tolist()
        return [f"{key:016x}-{number}" for key, number in zip(keys, numbers, strict=True)]

    def keep(self, place: int, example: Example) -> None:
        """Keep a row as an object, while rows are few and their inputs short."""
        size = self.kept_size + sum(map(len, example.inputs))
        if len(self.kept) < MAX_KEPT_ROWS and size <= MAX_KEPT_SIZE:
            self.kept[place], self.kept_size = example, size

    def __getstate__(self) -> dict[str, Any]:
        """Leave the kept rows out of what other processes get."""
        return {**vars(self), "kept": {}, "kept_size": 0}

    @property
    def names(self) -> list[str]:
        """Return the columns that an Example is made of."""
        return ["inputs", "cells", "where", "group", *(FACTS if self.pictures else ())]

    @cached_property
    def ranks(self) -> Places:
        """Return each row's rank [N] by its place in the data: row 2 comes before row 12."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = ["characters", "where"]
        table = pa.Table.from_batches([b.select(names) for b in self.table.batches])
        by_place = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in names])
        ranks = np.empty(len(self.keys), np.int64)
        ranks[by_place.to_numpy()] = np.arange(len(ranks))
        return ranks


class Examples(Sequence[Example]):
    """Rows of a split, in an order. An Example is made on demand, and parts share the columns."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, content: Content, places: Places) -> None:
        self.content, self.places = content, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, i: int) -> Example: ...
    @overload
    def __getitem__(self, i: slice) -> Examples: ...
    def __getitem__(self, i: int | slice) -> Example | Examples:
        if isinstance(i, slice):
            return Examples(self.content, self.places[i])
        place, content = int(self.places[i]), self.content
        if (kept := content.kept.get(place)) is not None:
            return kept
        values = content.table.row(place, content.names)
        block = {name: [value] for name, value in zip(content.names, values, strict=True)}
        example = next(self._made(self.places[[i]], block))
        content.keep(place, example)
        return example

    def __iter__(self) -> Iterator[Example]:
        table = self.content.table
        for places in table.blocks(self.places):
            yield from self._made(places, table.take(places, self.content.names).to_pydict())

    def _made(self, places: Places, block: dict[str, list[Any]]) -> Iterator[Example]:
        columns = [block[name] for name in ("inputs", "cells", "where", "group")]
        facts = facts_in(block) if self.content.pictures else [None] * len(places)
        rows = zip(self.content.ids(places), *columns, facts, strict=True)
        for id_, inputs, cells, where, group, seen in rows:
            yield Example(
                id_,
                tuple(map(decoded, inputs)),
                tuple(map(decoded, cells)),
                decoded(where),
                decoded_or_none(group),
                seen,
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __add__(self, other: Examples) -> Examples:
        """Return these rows, followed by other rows of the same data."""
        return Examples(self.content, np.concatenate([self.places, other.places]))

    def take(self, positions: Any) -> Examples:
        """Return the rows at these positions, or where an array of booleans says so."""
        return Examples(self.content, self.places[positions])

    def sorted(self) -> Examples:
        """Return the same rows sorted by content."""
        return Examples(self.content, np.sort(self.places))

    def by_place(self) -> Examples:
        """Return the same rows sorted by their place in the data: row 2 before row 12."""
        return self.take(np.argsort(self.content.ranks[self.places], kind="stable"))

    @property
    def keys(self) -> NDArray[np.uint64]:
        """Return the first 64 bits of the hash of each row's inputs [N]; equal keys are equal contents."""
        keys: NDArray[np.uint64] = self.content.keys[self.places]
        return keys

    def ids(self) -> Iterator[str]:
        """Yield the id of each row."""
        for at in range(0, len(self), BLOCK_ROWS):
            yield from self.content.ids(self.places[at : at + BLOCK_ROWS])

    def column(self, name: str) -> Iterator[Any]:
        """Yield one column's values, as bytes or lists of bytes."""
        for block in self.content.table.lists(self.places, [name]):
            yield from block[name]


# ---------------------------------------------------------------- one column of many rows


def by_id(parts: Sequence[Examples]) -> tuple[Examples, NDArray[np.int64]]:
    """Return the rows of all parts sorted by the text of their ids, and the number of each row's part [N]."""
    every = Examples(parts[0].content, np.concatenate([part.places for part in parts]))
    part = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    values, number = np.unique(every.content.numbers[every.places], return_inverse=True)
    rank = np.empty_like(values)
    rank[np.argsort(values.astype(str), kind="stable")] = np.arange(len(values))  # 10 before 2
    order = np.lexsort((rank[number], every.keys))
    return every.take(order), part[order]


def ids_of(rows: Sequence[Example]) -> Iterator[str]:
    """Yield the id of each row."""
    return rows.ids() if isinstance(rows, Examples) else (e.id for e in rows)


def some_of(rows: Sequence[Example], positions: Sequence[int]) -> Sequence[Example]:
    """Return the rows at some positions."""
    if isinstance(rows, Examples):
        return rows.take(np.asarray(positions, np.int64))
    return tuple(rows[i] for i in positions)


def concatenated(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    """Return the rows of all parts, one part after another."""
    columns = [part for part in parts if isinstance(part, Examples)]
    if columns and len(columns) == len(parts):
        places = np.concatenate([part.places for part in columns])
        return Examples(columns[0].content, places)
    return [e for part in parts for e in part]


class ByName(Mapping[str, Example]):
    """Rows by name, made on demand; the last of equal names counts."""

    def __init__(self, names: Iterable[str], rows: Sequence[Example]) -> None:
        self.place, self.rows = {name: i for i, name in enumerate(names)}, rows

    def __len__(self) -> int:
        return len(self.place)

    def __iter__(self) -> Iterator[str]:
        return iter(self.place)

    def __getitem__(self, name: str) -> Example:
        return self.rows[self.place[name]]


class InputsOf(Sequence[Cells]):
    """Inputs of rows, made on demand."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Cells: ...
    @overload
    def __getitem__(self, i: slice) -> list[Cells]: ...
    def __getitem__(self, i: int | slice) -> Cells | list[Cells]:
        return [e.inputs for e in self.rows[i]] if isinstance(i, slice) else self.rows[i].inputs


def cells_of(rows: Sequence[Example]) -> list[Cells]:
    """Return the label cells of each row. Up to MAX_SHARED_VALUES equal ones share an object."""
    if not isinstance(rows, Examples):
        return [e.cells for e in rows]
    known: dict[tuple[bytes, ...], Cells] = {}
    every = []
    for value in rows.column("cells"):
        data = tuple(value)
        cells = known.get(data)
        if cells is None:
            cells = tuple(map(decoded, data))
            if len(known) < MAX_SHARED_VALUES:
                known[data] = cells
        every.append(cells)
    return every


def groups_of(rows: Sequence[Example]) -> list[str | None]:
    """Return the group of each row; None where it has none."""
    if isinstance(rows, Examples):
        return shared(rows.column("group"))
    return [e.group for e in rows]


def places_of(rows: Sequence[Example]) -> list[str]:
    """Return the place of each row in the data."""
    if isinstance(rows, Examples):
        return [decoded(where) for where in rows.column("where")]
    return [e.where for e in rows]


def splits_of(rows: Examples) -> list[str | None]:
    """Return the split that the data name for each row; None where they name none."""
    return shared(rows.column("split"))


def shared(values: Iterable[bytes | None]) -> list[str | None]:
    """Return values as text, equal ones as one object."""
    known: dict[bytes | None, str | None] = {None: None}
    texts = []
    for value in values:
        if value not in known:
            if len(known) == MAX_SHARED_VALUES:
                known = {None: None}
            known[value] = decoded_or_none(value)
        texts.append(known[value])
    return texts


# ---------------------------------------------------------------- facts of images


def fact_fields() -> list[Any]:
    """Return the Arrow fields of an image's facts."""
    import pyarrow as pa

    kinds = {
        "format": pa.string(),
        "mode": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "deep": pa.bool_(),
        "animated": pa.bool_(),
        "orientation": pa.int64(),
        "hash": pa.uint64(),
        "mirrored": pa.uint64(),
        "thumb": pa.binary(),
    }
    return [pa.field(name, kinds[name]) for name in FACTS]


def stored_facts(facts: Iterable[PictureFacts | None]) -> Mapped:
    """Return facts of images as columns. Takes one image at a time."""
    import pyarrow as pa

    stream = iter(facts)
    parts = iter(lambda: list(islice(stream, BATCH_ROWS)), [])
    return mapped(map(facts_batch, parts), pa.schema(fact_fields()))


def facts_batch(facts: Sequence[PictureFacts | None]) -> Any:
    """Return facts of images as a record batch, with nulls for images that cannot be used."""
    import pyarrow as pa

    rows = [
        (f.format, f.mode, *f.size, f.deep, f.animated, f.orientation, f.hash, f.mirrored, f.thumb)
        if f
        else (None,) * len(FACTS)
        for f in facts
    ]
    fields = fact_fields()
    arrays = [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), fields, strict=True)]
    return pa.record_batch(arrays, schema=pa.schema(fields))


def facts_in(block: dict[str, list[Any]]) -> list[PictureFacts]:
    """Return facts of images from their columns."""
    return [
        PictureFacts(format, mode, (width, height), *others)
        for format, mode, width, height, *others in zip(*(block[n] for n in FACTS), strict=True)
    ]
