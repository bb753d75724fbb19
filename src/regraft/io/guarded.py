"""Read the files of a run folder, which may come from a stranger and may still be written.

Every reader of run folders goes through this module. It opens regular files alone:

- no link is followed, neither a file's own nor that of a folder on the way: it may lead to a private file;
- no pipe and no device is opened: a reader would wait for it without end;
- a file has a limit in bytes, JSON and TOML have one in depth, and a number must be one that Python holds.

``run`` itself is the caller's own word and may be a link. A name is relative to it, as "model/config.json".
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UsageError, printable, shorten

# Bytes that a file may have. Weights have no limit: safetensors checks them against their header.
LIMITS_BYTES = {
    "lock": 64_000,
    "plan.toml": 4_000_000,
    "history.jsonl": 16_000_000,
    "manifest.jsonl": 16_000_000_000,  # read row by row; 50 million rows take 6.4 GB
    "predictions.csv": 16_000_000_000,
}

SUFFIX_LIMITS_BYTES = {".jpg": 1_000_000, ".safetensors": 1 << 62}

TOKENIZER_LIMIT_BYTES = 256_000_000  # a file below model/

LIMIT_BYTES = 64_000_000  # any other; JSON takes up to twenty times its size in memory

LINE_LIMIT_BYTES = 64_000_000

DEPTH = 64  # of objects and lists in one another

DIGITS, BITS = 20, 67  # of a whole number

FILES, FOLDERS_DEEP = 10_000, 8  # that a folder of a run may hold

LISTED = 3


class NotReadError(UsageError):
    """A file that is there and cannot be used, and why."""


def limit_of(name: str) -> int:
    """Return the bytes that a file of a run may have."""
    path = PurePosixPath(name)
    if (limit := SUFFIX_LIMITS_BYTES.get(path.suffix)) is not None:
        return limit
    below_model = path.parts[0] == "model" and len(path.parts) > 1
    return LIMITS_BYTES.get(name, TOKENIZER_LIMIT_BYTES if below_model else LIMIT_BYTES)


def is_read(name: str) -> bool:
    """Return whether a file of a run may be one that is read, by its name."""
    path = PurePosixPath(name)
    return len(path.parts) > 1 or name in LIMITS_BYTES or path.suffix in (".json", ".jsonl", ".txt")


def shown(run: Path, name: str = "") -> str:
    """Return a path for a message: names of a stranger may hold anything."""
    return printable(str(run / name))


# ---------------------------------------------------------------- one file


@contextmanager
def opened(run: Path, name: str) -> Iterator[BufferedReader | None]:
    """Open a file of a run to read its bytes; None where there is no such file.

    Raises NotReadError for a link, for what is no regular file, and above its limit.
    """
    descriptor = _open(run, name)
    if descriptor is None:
        yield None
        return
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise NotReadError(_no_file(run, name))
        if about.st_size > (limit := limit_of(name)):
            raise NotReadError(_too_large(run, name, about.st_size, limit))
        yield file


def read(run: Path, name: str, last: int | None = None) -> bytes | None:
    """Return a file's bytes, or its ``last`` ones, whatever its size; None where there is no such file.

    Raises NotReadError.
    """
    if last is not None:
        return _end_of(run, name, last)
    with opened(run, name) as file:
        if file is None:
            return None
        data = file.read(limit_of(name) + 1)  # it may have grown since
    if len(data) > limit_of(name):
        raise NotReadError(_too_large(run, name, len(data), limit_of(name)))
    return data


def text(run: Path, name: str) -> str | None:
    """Return a file's text; None where there is no such file. Raises NotReadError."""
    data = read(run, name)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(run, name, f"byte {error.start} is no UTF-8") from error


def lines(run: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes) of each line of a file, without holding them all; a line that is longer
    than LINE_LIMIT_BYTES is refused.

    Raises NotReadError, where there is no such file too.
    """
    with opened(run, name) as file:
        if file is None:
            raise NotReadError(f"{shown(run, name)} is missing; is this a run folder?")
        number = 0
        while line := file.readline(LINE_LIMIT_BYTES + 1):
            number += 1
            if len(line) > LINE_LIMIT_BYTES:
                raise damaged(run, name, f"line {number} is longer than {LINE_LIMIT_BYTES:,} bytes")
            yield number, line.rstrip(b"\n")


def copy(run: Path, name: str, to: Path) -> bool:
    """Copy a file's bytes to a new file; return False where there is no such file. Raises NotReadError."""
    with opened(run, name) as file:
        if file is None:
            return False
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("xb") as target:
            while part := file.read(1 << 20):
                target.write(part)
    return True


def is_file(run: Path, name: str) -> bool:
    """Check whether a run has a regular file of this name, without a link on the way."""
    try:
        found = _look(run, name)
    except NotReadError:
        return False
    return found is not None


def damaged(run: Path, name: str, why: object) -> NotReadError:
    """Return the error of a file whose content is not what a run writes."""
    return NotReadError(
        f"{shown(run, name)} is damaged, or was made by another version of regraft: {printable(str(why))}"
    )


# ---------------------------------------------------------------- what a file says


def read_json(run: Path, name: str, *, finite: bool = True) -> Any:
    """Return the value in a JSON file; None where there is no such file. Raises NotReadError."""
    found = text(run, name)
    if found is None:
        return None
    try:
        value = parse_json(found, finite=finite)
    except ValueError as error:
        raise damaged(run, name, error) from error
    if value is None:
        raise damaged(run, name, "it holds nothing")
    return value


def read_toml(run: Path, name: str) -> dict[str, Any] | None:
    """Return the tables in a TOML file; None where there is no such file. Raises NotReadError."""
    found = text(run, name)
    if found is None:
        return None
    try:
        return parse_toml(found)
    except ValueError as error:
        raise damaged(run, name, error) from error


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for what is no JSON, for values nested deeper than DEPTH and for numbers that Python
    does not hold; with ``finite`` for infinities and NaN too.
    """
    value = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        found = json.loads(value)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_values(found, finite=finite)
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises ValueError for what is no TOML or nested deeper than DEPTH."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_values(found)
    return found


TOO_DEEP = f"its brackets are nested too deep, beyond {DEPTH} levels"


def check_values(tree: Any, *, finite: bool = False) -> None:
    """Raise ValueError for objects and lists nested deeper than DEPTH, since no stack is as deep as they may
    be, for whole numbers too long to be written again, and with ``finite`` for infinities and NaN."""
    layer: list[Any] = [[tree]]
    for _ in range(DEPTH + 1):
        inner = []
        for node in layer:
            for child in node.values() if isinstance(node, dict) else node:
                if isinstance(child, dict | list):
                    inner.append(child)
                elif isinstance(child, int) and child.bit_length() > BITS:
                    raise ValueError(f"a whole number has more than {DIGITS} digits")
                elif finite and isinstance(child, float) and not math.isfinite(child):
                    raise ValueError("a number is not finite")
        if not inner:
            return
        layer = inner
    raise ValueError(TOO_DEEP)


# ---------------------------------------------------------------- whole folders


def check_folder(run: Path, name: str = "", leave: tuple[str, ...] = ()) -> None:
    """Check that everything in a folder of a run is a folder or a regular file within its limit, before a
    library opens files there by their paths. ``leave`` names folders below it that are not looked at. Of a
    whole run only files have a limit that are read: a person may keep a long log or table beside them.

    Raises NotReadError, naming what is none.
    """
    if name:
        _look(run, name, folder=True)
    bad: list[str] = []
    seen, waiting = 0, [(name, 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(run / here), key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise NotReadError(f"{shown(run, here)} cannot be read: {error.strerror}") from error
        seen += len(entries)
        if seen > FILES or depth > FOLDERS_DEEP:
            raise NotReadError(
                f"{shown(run, name)} holds more than {FILES:,} files or folders deeper than {FOLDERS_DEEP}: no run does"
            )
        for entry in entries:
            inner = f"{here}/{entry.name}" if here else entry.name
            about = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode):
                waiting += [] if inner in leave else [(inner, depth + 1)]
            elif not stat.S_ISREG(about.st_mode):
                bad.append(inner)
            elif (name or is_read(inner)) and about.st_size > (limit := limit_of(inner)):
                raise NotReadError(_too_large(run, inner, about.st_size, limit))
    if bad:
        raise NotReadError(
            f"{shown(run)} holds links or things that are no files, which are not followed or opened: "
            f"{shorten(sorted(bad), LISTED)}; remove them, or put the files themselves there"
        )


# ---------------------------------------------------------------- opening


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\0" in name:
        raise NotReadError(f'"{printable(name)}" is no name of a file in a run folder')
    return parts


def _look(run: Path, name: str, folder: bool = False) -> os.stat_result | None:
    """Return what the last part of a name is; None where there is no such file.

    Raises NotReadError for a link on the way and for what is no regular file (or no folder).
    """
    here, parts = run, _parts(name)
    for i, part in enumerate(parts):
        here = here / part
        try:
            about = here.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise NotReadError(f"{shown(run, name)} cannot be read: {why}") from error
        if stat.S_ISLNK(about.st_mode):
            raise NotReadError(_link(here))
        last = i == len(parts) - 1
        if last and not folder and not stat.S_ISREG(about.st_mode):
            raise NotReadError(_no_file(run, name))
        if last and folder and not stat.S_ISDIR(about.st_mode):
            raise NotReadError(f"{shown(run, name)} is no folder")
    return about


def _open(run: Path, name: str) -> int | None:
    """Return a descriptor, opened folder by folder, so that no link that is put there meanwhile is followed."""
    if _look(run, name) is None:
        return None
    *folders, last = _parts(name)
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    of_file = flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if os.open not in os.supports_dir_fd:
            return os.open(run / name, of_file)
        here = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folders:
                before = here
                here = os.open(part, flags | os.O_DIRECTORY, dir_fd=before)
                os.close(before)
            return os.open(last, of_file, dir_fd=here)
        finally:
            os.close(here)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotReadError(f"{shown(run, name)} cannot be read: {error.strerror}") from error


def _end_of(run: Path, name: str, last: int) -> bytes | None:
    descriptor = _open(run, name)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise NotReadError(_no_file(run, name))
        file.seek(max(0, about.st_size - last))
        return file.read(last)


def _link(path: Path) -> str:
    return f"{printable(str(path))} is a link, and links in a run folder are not followed"


def _no_file(run: Path, name: str) -> str:
    return f"{shown(run, name)} is no plain file"


def _too_large(run: Path, name: str, size: int, limit: int) -> str:
    return f"{shown(run, name)} has {size:,} bytes, and at most {limit:,} are read"
