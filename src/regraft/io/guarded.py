"""The one reader of run folders, which may come from a stranger and may still be written.

It opens regular files only:

- It follows no link, neither of a file nor of a folder on the way, because a link may lead to a private file.
- It opens no pipe and no device, because reading one may never end.
- It limits the bytes of a file, the depth of JSON and TOML, and the digits of a number.

``run`` is the caller's own path and may be a link. A name is relative to it, as "model/config.json".
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UsageError, printable, shorten

# Most bytes of a file. Weights have no limit, because safetensors checks them against their header.
LIMITS_BYTES = {
    "lock": 64_000,
    "plan.toml": 4_000_000,
    "history.jsonl": 16_000_000,
    "manifest.jsonl": 16_000_000_000,  # read row by row; 50 million rows take 6.4 GB
    "predictions.csv": 16_000_000_000,
}

OF_A_SEED = re.compile(r"predictions-\d+\.csv")  # as large as predictions.csv

SUFFIX_LIMITS_BYTES = {".jpg": 1_000_000, ".safetensors": 1 << 62}

TOKENIZER_LIMIT_BYTES = 256_000_000  # of a file below model/

LIMIT_BYTES = 64_000_000  # of any other file; JSON takes up to twenty times its size in memory

LINE_LIMIT_BYTES = 64_000_000

MAX_DEPTH = 64  # of nested objects and lists

MAX_DIGITS, MAX_BITS = 20, 67  # of a whole number

MAX_FILES, MAX_FOLDER_DEPTH = 10_000, 8  # of a folder of a run

MAX_NAMES = 3  # in a message


class NotReadError(UsageError):
    """A file of a run that is there and cannot be used."""


def limit_of(name: str) -> int:
    """Return the most bytes that a file of a run may have, by its name."""
    path = PurePosixPath("predictions.csv" if OF_A_SEED.fullmatch(name) else name)
    if (limit := SUFFIX_LIMITS_BYTES.get(path.suffix)) is not None:
        return limit
    below_model = path.parts[0] == "model" and len(path.parts) > 1
    return LIMITS_BYTES.get(str(path), TOKENIZER_LIMIT_BYTES if below_model else LIMIT_BYTES)


def is_read(name: str) -> bool:
    """Check whether regraft reads files of this name in a run."""
    path = PurePosixPath(name)
    known = name in LIMITS_BYTES or OF_A_SEED.fullmatch(name) is not None
    return len(path.parts) > 1 or known or path.suffix in (".json", ".jsonl", ".txt")


def shown(run: Path, name: str = "") -> str:
    """Return a path for a message, escaped, because a stranger's file names may hold anything."""
    return printable(str(run / name))


# ---------------------------------------------------------------- one file


@contextmanager
def opened(run: Path, name: str, *, limited: bool = True) -> Iterator[BufferedReader | None]:
    """Yield a file of a run, open to read its bytes; None where there is no such file.

    Raises NotReadError for a link, for anything but a regular file and, if ``limited``, for a file above its
    limit.
    """
    descriptor = _open(run, name)
    if descriptor is None:
        yield None
        return
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise NotReadError(_no_file(run, name))
        if limited and about.st_size > (limit := limit_of(name)):
            raise NotReadError(_too_large(run, name, about.st_size, limit))
        yield file


def read(run: Path, name: str, last: int | None = None) -> bytes | None:
    """Return a file's bytes; None where there is no such file.

    With ``last``, return at most so many bytes from its end, whatever its size. Raises NotReadError.
    """
    with opened(run, name, limited=last is None) as file:
        if file is None:
            return None
        if last is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            return file.read(last)
        data = file.read(limit_of(name) + 1)  # the file may have grown meanwhile
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
    """Yield (number from 1, bytes) of each line of a file, one line in memory at a time.

    Raises NotReadError, also for a missing file and for a line longer than LINE_LIMIT_BYTES.
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
        return _check_path(run, name) is not None
    except NotReadError:
        return False


def damaged(run: Path, name: str, why: object) -> NotReadError:
    """Return the error for a file whose content no run writes."""
    return NotReadError(
        f"{shown(run, name)} is damaged, or was made by another version of regraft: {printable(str(why))}"
    )


# ---------------------------------------------------------------- JSON and TOML


def read_json(run: Path, name: str, *, finite: bool = True) -> Any:
    """Return the value of a JSON file; None where there is no such file. Raises NotReadError."""
    return _parsed_file(run, name, partial(parse_json, finite=finite))


def read_toml(run: Path, name: str) -> dict[str, Any] | None:
    """Return the tables of a TOML file; None where there is no such file. Raises NotReadError."""
    tables: dict[str, Any] | None = _parsed_file(run, name, parse_toml)
    return tables


def _parsed_file(run: Path, name: str, parse: Callable[[str], Any]) -> Any:
    content = text(run, name)
    if content is None:
        return None
    try:
        value = parse(content)
    except ValueError as error:
        raise damaged(run, name, error) from error
    if value is None:
        raise damaged(run, name, "it holds nothing")
    return value


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for text that is no JSON and for values that ``check_values`` refuses.
    """
    return _parsed(json.loads, text.decode("utf-8") if isinstance(text, bytes) else text, finite=finite)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises ValueError for text that is no TOML and for values that ``check_values`` refuses.
    """
    tables: dict[str, Any] = _parsed(tomllib.loads, text, finite=False)
    return tables


def _parsed(loads: Callable[[str], Any], text: str, *, finite: bool) -> Any:
    try:
        value = loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_values(value, finite=finite)
    return value


TOO_DEEP = f"its brackets are nested too deep, beyond {MAX_DEPTH} levels"


def check_values(tree: Any, *, finite: bool = False) -> None:
    """Check whether a tree of JSON values can be walked and written again.

    Raises ValueError for values nested deeper than MAX_DEPTH, for whole numbers of more than MAX_DIGITS
    digits and, with ``finite``, for infinities and NaN.
    """
    layer: list[Any] = [[tree]]
    for _ in range(MAX_DEPTH + 1):
        inner = []
        for node in layer:
            for child in node.values() if isinstance(node, dict) else node:
                if isinstance(child, dict | list):
                    inner.append(child)
                elif isinstance(child, int) and child.bit_length() > MAX_BITS:
                    raise ValueError(f"a whole number has more than {MAX_DIGITS} digits")
                elif finite and isinstance(child, float) and not math.isfinite(child):
                    raise ValueError("a number is not finite")
        if not inner:
            return
        layer = inner
    raise ValueError(TOO_DEEP)


# ---------------------------------------------------------------- whole folders


def check_folder(run: Path, name: str = "", leave: tuple[str, ...] = ()) -> None:
    """Check a folder of a run: it may hold only folders and regular files within their limits.

    Call this before a library opens files there by their paths. ``leave`` names folders below it to skip. Of
    a whole run only the files that regraft reads have a limit, because a person may keep a long table there.

    Raises NotReadError, naming the entries that are neither.
    """
    if name:
        _check_path(run, name, folder=True)
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
        if seen > MAX_FILES or depth > MAX_FOLDER_DEPTH:
            raise NotReadError(
                f"{shown(run, name)} holds more than {MAX_FILES:,} files or folders deeper than "
                f"{MAX_FOLDER_DEPTH}: no run does"
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
            f"{shorten(sorted(bad), MAX_NAMES)}; remove them, or put the files themselves there"
        )


# ---------------------------------------------------------------- opening


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\0" in name:
        raise NotReadError(f'"{printable(name)}" is no name of a file in a run folder')
    return parts


def _check_path(run: Path, name: str, folder: bool = False) -> os.stat_result | None:
    """Return the state of the file that a name leads to; None where there is no such file.

    Raises NotReadError for a link on the way and for anything but a regular file (or a folder).
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
    """Return a file's descriptor, opened folder by folder, so that a link put there meanwhile is not followed."""
    if _check_path(run, name) is None:
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


def _link(path: Path) -> str:
    return f"{printable(str(path))} is a link, and links in a run folder are not followed"


def _no_file(run: Path, name: str) -> str:
    return f"{shown(run, name)} is no plain file"


def _too_large(run: Path, name: str, size: int, limit: int) -> str:
    return f"{shown(run, name)} has {size:,} bytes, and at most {limit:,} are read"
