"""Read files that another process is writing, and that may be anything at all.

Links are not followed, nor is anything opened that is no plain file: a run folder may come from
somebody else, and a pipe in it would hold the page up for ever.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

LIMIT = 64_000_000  # bytes that are read of a file at most


class NotReadError(ValueError):
    """A file that is there and cannot be used, and why."""


def read(path: Path, last: int | None = None) -> bytes | None:
    """A file's bytes, or its ``last`` ones; None where there is no such file.

    Raises NotReadError for a link, for what is no plain file, and above LIMIT.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.is_symlink():  # elsewhere than on POSIX there is no flag
            raise NotReadError(f"{path.name} is a link, and links are not followed")
        handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotReadError(f"{path.name} cannot be read: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise NotReadError(f"{path.name} is no plain file")
        if last is not None:
            file.seek(max(0, about.st_size - last))
            return file.read(last)
        if about.st_size > LIMIT:
            raise NotReadError(f"{path.name} has {about.st_size:,} bytes, too many to show")
        return file.read(LIMIT)


def read_record(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file. Raises NotReadError."""
    data = read(path)
    if data is None:
        return None
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotReadError(f"{path.name} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise NotReadError(f"{path.name} is damaged: it holds no record")
    return record


def read_lines(data: bytes) -> tuple[list[dict[str, Any]], int, int]:
    """(records, bytes they take, lines that are damaged) of a .jsonl file. A last line without its end
    is still being written: it is left for the next time."""
    whole = data[: data.rfind(b"\n") + 1]
    found, damaged = list[dict[str, Any]](), 0
    for line in whole.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            damaged += 1
    return found, len(whole), damaged


def links_out(folder: Path) -> list[str]:
    """Names of links in a run folder that lead out of it."""
    inside = folder.resolve()
    return [
        str(path.relative_to(folder))
        for part in (folder, folder / "gallery", folder / "model")
        if part.is_dir()
        for path in sorted(part.iterdir())
        if path.is_symlink() and not path.resolve().is_relative_to(inside)
    ]
