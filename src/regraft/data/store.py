"""Cache on disk of the outputs of frozen blocks: one folder an entry, mapped when it is read.

ROOT/<key>/index.json     key, ids, shapes, lengths and the sha256 of each file
ROOT/<key>/index.sha256   of index.json, because a row under another row's id would give a wrong figure
ROOT/<key>/<tensor>.bin   the rows end to end; of texts, the tokens without padding

A key is the sha256 of all that an entry depends on (see ``pipeline.feature_keys.key_of``). An entry is
written beside its place and renamed, so one of several writers wins. A kill leaves only a folder that the
next writer removes (see :mod:`regraft.io.work_folders`). Entries are not changed afterwards. Above the limit
the longest unused entries are removed.

A digest beside the data proves nothing against a person who wrote both. So an entry of another user is not
used, unless ``run.cache_users = "all"``. No other user may write to an entry; the umask decides who may read
it. Below another user's folder, this user's entries lie in ``uid-N``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import numpy as np
import torch

from ..errors import DiskError
from ..io.atomic import move_folder, sync_file, write_file
from ..io.hashing import file_digest
from ..io.places import cache_root
from ..io.work_folders import is_own, work_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..compute.arrays import Inputs


T = TypeVar("T")

SCHEMA = 3

INDEX, SUM = "index.json", "index.sha256"

MASK = "attention_mask"  # [B, T]; its ones give the length of each row

SOLE = "output"  # name of a tensor that is no value of a dict


class DamagedError(ValueError):
    """An entry that differs from what was written. An entry that cannot be read is an OSError."""


class NotStorableError(ValueError):
    """Outputs of a shape that has no rows."""


@dataclass(frozen=True)
class Entry:
    """Outputs of the blocks below a cut, for the rows of one split."""

    place: Mapping[str, int]  # id → row
    arrays: Mapping[str, NDArray[np.uint8]]  # tensor → [N, bytes], or [ΣT, bytes] with ``ends``
    dtypes: Mapping[str, torch.dtype]
    shapes: Mapping[str, tuple[int, ...]]  # of a row, or of a token
    ends: NDArray[np.int64] | None = None  # [N + 1]: row i is tokens ends[i] to ends[i + 1]

    def batch(self, ids: Sequence[str]) -> Inputs:
        """Return the rows of these ids [B, …]; texts as {"hidden": [B, T, D], …}, padded with zeros."""
        rows = [self.place[i] for i in ids]
        if self.ends is None:
            tensors = {name: self._tensor(name, a[rows]) for name, a in self.arrays.items()}
            return tensors if set(tensors) != {SOLE} else tensors[SOLE]
        ends = self.ends
        lengths = [int(ends[r + 1] - ends[r]) for r in rows]
        padded: dict[str, Tensor] = {}
        for name, array in self.arrays.items():
            flat = np.zeros((len(rows), max(lengths), array.shape[1]), dtype=np.uint8)
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                flat[i, :length] = array[ends[row] : ends[row + 1]]
            padded[name] = self._tensor(name, flat)
        return padded

    def rows(self, ids: Sequence[str]) -> Inputs:
        """Return rows as ``batch``. All rows in order are mapped, not copied: do not write to them."""
        if self.ends is not None or set(self.arrays) != {SOLE} or list(self.place) != list(ids):
            return self.batch(ids)
        flat = torch.from_numpy(self.arrays[SOLE]).view(-1).view(self.dtypes[SOLE])
        return flat.view(len(ids), *self.shapes[SOLE])

    def _tensor(self, name: str, values: NDArray[np.uint8]) -> Tensor:
        lead = values.shape[:-1]
        flat = torch.from_numpy(np.ascontiguousarray(values)).view(-1)
        return flat.view(self.dtypes[name]).view(*lead, *self.shapes[name])


@dataclass(frozen=True)
class FeatureCache:
    """Entries in one folder, which several processes may share."""

    root: Path
    limit: int  # most bytes of this user's entries
    users: str = "own"  # whose entries are used; or "all"

    def open(self, key: str) -> Entry | None:
        """Return an entry, every file checked against its sha256; None where there is none.

        Removes an entry that is proven damaged. Raises OSError for an entry that cannot be read, or that
        belongs to another user.
        """
        return self.read(key, self._read)

    def read(self, key: str, reader: Callable[[Path, Mapping[str, Any]], T]) -> T | None:
        """Return ``reader(folder, index)`` of an entry, under the rules of ``open``."""
        path = self.root / key
        if not path.is_dir():
            return None
        self.check_owner(path)
        try:
            value = reader(path, read_index(path, key))
        except DamagedError:
            remove(path)
            return None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None  # its digests are right, so another version wrote it; the next writer replaces it
        except FileNotFoundError:  # evicted meanwhile, or incomplete; the next writer replaces it
            return None
        with suppress(OSError):  # another user's, or on a read-only disk
            os.utime(path)  # eviction goes by the last use
        return value

    def check_owner(self, path: Path) -> None:
        """Raise OSError for an entry, or a file in it, of a user whose entries are not used."""
        folder, files = path.lstat(), [f.lstat() for f in path.iterdir()]
        if not all(stat.S_ISREG(f.st_mode) for f in files):
            raise OSError(errno.EINVAL, f"{path} holds something that is no regular file")
        if self.users == "own" and not all(is_own(a) for a in (folder, *files)):
            raise PermissionError(errno.EPERM, f'{path} is another user\'s (run.cache_users = "all" would use it)')

    def _read(self, path: Path, index: Mapping[str, Any]) -> Entry:
        arrays, dtypes, shapes = {}, {}, {}
        lengths = index["lengths"]
        count = len(index["ids"]) if lengths is None else sum(lengths)
        for name, tensor in index["tensors"].items():
            file = path / f"{check_name(name)}.bin"
            dtypes[name] = getattr(torch, tensor["dtype"])
            shapes[name] = tuple(tensor["shape"])
            width = int(np.prod(tensor["shape"])) * dtypes[name].itemsize
            with file.open("rb") as stream:  # one handle: the mapped file is the checked one
                size = os.fstat(stream.fileno()).st_size
                if size != count * width or file_digest(stream) != tensor["sha256"]:
                    raise DamagedError(f"{file} is damaged")
                # "c": torch takes it without a warning, and a write would not reach the file
                arrays[name] = np.memmap(stream, dtype=np.uint8, mode="c", shape=(count, width))
        place = {id_: i for i, id_ in enumerate(index["ids"])}
        ends = None if lengths is None else np.cumsum([0, *lengths])
        return Entry(place, arrays, dtypes, shapes, ends)

    def write(self, key: str, rows: Iterable[tuple[Sequence[str], Inputs]]) -> Entry:
        """Write an entry from batches of (ids, outputs), one batch at a time, and return it.

        Raises OSError where the disk does not take it, and NotStorableError for outputs without rows. Both
        leave nothing behind.
        """
        self.put(key, lambda folder: self._stream(folder, key, rows))
        entry = self.open(key)
        if entry is None:
            raise OSError(f"{self.root / key} could not be read back")
        return entry

    def put(self, key: str, fill: Callable[[Path], None]) -> None:
        """Write an entry of the files that ``fill`` writes into the folder that it gets.

        Raises OSError where the disk does not take it, and the errors of ``fill``. Both leave nothing
        behind.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with work_folder(self.root, "entry") as folder:
                fill(folder)
                for file in folder.iterdir():
                    file.chmod(file.stat().st_mode & 0o755)
                self._evict(keep=sum(f.stat().st_size for f in folder.iterdir()))
                place = self.root / key
                with suppress(OSError):  # the place is free
                    if is_own(place.lstat()):  # an entry that could not be used, or another writer's
                        place.rename(folder.parent / "before")
                try:
                    move_folder(folder, place)
                except OSError:  # another writer's equal entry came first
                    if not place.is_dir():
                        raise
        except DiskError as error:
            raise OSError(str(error)) from error

    def _stream(self, folder: Path, key: str, rows: Iterable[tuple[Sequence[str], Inputs]]) -> None:
        ids: list[str] = []
        lengths: list[int] | None = None
        files: dict[str, BinaryIO] = {}
        tensors: dict[str, dict[str, Any]] = {}
        hashes: dict[str, Any] = {}
        try:
            for names, output in rows:
                parts, row_lengths = split_rows(output, len(names))
                if ids and (row_lengths is None) != (lengths is None):
                    raise NotStorableError("some batches have a mask and some have none")
                ids += names
                if row_lengths is not None:
                    lengths = lengths or []
                    lengths += row_lengths
                for name, value in parts.items():
                    about: dict[str, Any] = {"dtype": str(value.dtype).removeprefix("torch.")}
                    about["shape"] = list(value.shape[1:])
                    if name not in files:
                        files[name] = (folder / f"{check_name(name)}.bin").open("wb")
                        tensors[name], hashes[name] = about, hashlib.sha256()
                    if tensors[name] != about:
                        raise NotStorableError(f"rows differ in shape: {tensors[name]} and {about}")
                    raw = raw_bytes(value)
                    files[name].write(raw)
                    hashes[name].update(raw)
        finally:
            for file in files.values():
                file.close()
        for name, about in tensors.items():
            sync_file(folder / f"{name}.bin")
            about["sha256"] = hashes[name].hexdigest()
        index = {"schema": SCHEMA, "key": key, "ids": ids, "lengths": lengths, "tensors": tensors}
        write_index(folder, index)

    def entries(self) -> list[tuple[Path, int, float]]:
        """Return (folder, bytes, time of the last use) of every entry, the longest unused first."""
        entries = []
        for path in self.root.glob("*"):
            if not re.fullmatch("[0-9a-f]{64}", path.name):
                continue  # no entry, so it must stay
            try:
                size = sum(f.stat().st_size for f in path.iterdir())
                entries.append((path, size, path.stat().st_mtime))
            except OSError:  # removed meanwhile
                continue
        return sorted(entries, key=lambda entry: entry[2])

    def _evict(self, keep: int) -> None:
        """Remove entries until ``keep`` more bytes fit. A process that maps an evicted entry still reads it."""
        entries = [e for e in self.entries() if is_own(e[0].lstat())]
        total = sum(size for _, size, _ in entries) + keep
        for path, size, _ in entries:
            if total <= self.limit:
                return
            remove(path)
            total -= size

    def clear(self) -> int:
        """Remove every entry of this user; return their number."""
        return sum(remove(path) for path, _, _ in self.entries())


def remove(path: Path) -> bool:
    """Remove an entry of this user; return whether it was removed."""
    with suppress(OSError):
        if is_own(path.lstat()):
            shutil.rmtree(path, ignore_errors=True)
            return not path.exists()
    return False


def place_of(setting: str) -> Path:
    """Return the folder that a plan's ``run.cache`` names; "shared" names the user's cache."""
    if setting != "shared":
        return Path(setting)
    return cache_root() / "features"


def cache_in(setting: str, users: str = "own", limit: int = 0) -> FeatureCache:
    """Return the cache that a plan names.

    In a folder of another user, whose entries are not used, this user has a folder of their own: else each
    would find the other's entry in its place.
    """
    root = place_of(setting)
    with suppress(OSError):
        if users == "own" and not is_own(root.stat()):
            root = root / f"uid-{os.geteuid()}"
    return FeatureCache(root, limit, users)


def raw_bytes(value: Tensor) -> bytes:
    """Return the bytes of a tensor's values, row by row."""
    return value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def split_rows(output: Any, rows: int) -> tuple[dict[str, Tensor], list[int] | None]:
    """Return ({name: rows end to end}, tokens of each row) of a batch's outputs.

    The second is None where all rows have one size. Raises NotStorableError for outputs without rows.
    """
    parts = output if isinstance(output, dict) else {SOLE: output}
    for name, value in parts.items():
        if not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != rows:
            raise NotStorableError(f"{name} has no {rows} rows")
    mask = parts.get(MASK)
    if mask is None:
        return dict(parts), None
    lengths = mask.sum(1)
    inside = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    if not torch.equal(inside, mask.bool()):
        raise NotStorableError("the padding is not at the end")
    if any(v.shape[:2] != mask.shape for v in parts.values()):
        raise NotStorableError("a tensor does not have a place a token")
    return {n: v[inside] for n, v in parts.items()}, lengths.tolist()


def check_name(name: str) -> str:
    """Return a tensor's name, to name a file by. Raises NotStorableError for one that cannot."""
    if not re.fullmatch(r"\w+", name):
        raise NotStorableError(f'"{name}" is no name for a file')
    return name


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write the index of an entry and its digest. Call this last: an entry without an index is none."""
    write_file(folder / INDEX, json.dumps(index))
    write_file(folder / SUM, file_digest(folder / INDEX))


def read_index(path: Path, key: str) -> dict[str, Any]:
    """Return the index of an entry.

    Raises OSError where it cannot be read, and DamagedError where it differs from what was written.
    """
    text = (path / INDEX).read_bytes()
    if hashlib.sha256(text).hexdigest().encode() != (path / SUM).read_bytes():
        raise DamagedError(f"{path / INDEX} is damaged")
    index = cast(dict[str, Any], json.loads(text))
    if index.get("key") != key:  # an entry that was renamed
        raise DamagedError(f"{path} has another name than its index")
    return index
