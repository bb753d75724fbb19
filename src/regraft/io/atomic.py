"""Writes that are whole or absent: write beside the place, sync, rename, sync the parent folder.

A rename within one disk is atomic. A crash before the rename leaves the old content; a sync before the
rename keeps an empty file from taking the name. The parent's own sync makes the new name last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DiskError


def write_file(
    path: Path, content: str | bytes, part: Path | None = None, *, mode: int = 0o666, sync: bool = True
) -> None:
    """Replace a file's content, whole or not at all; text is written as UTF-8.

    ``part`` is the name to write first, on the same disk; default: .NAME.part, which suits a folder with
    one writer. ``mode`` limits who may use a new file, besides the umask. ``sync=False`` suits files whose
    content every reader checks. Raises OSError, after which the old content stands.
    """
    part = part or path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # an earlier kill may have left it; a link would be followed
        write_new(part, content, mode=mode, sync=sync)
        part.replace(path)
    except BaseException:  # Ctrl-C too must leave no part behind; it is raised again
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_new(path: Path, content: str | bytes, *, mode: int = 0o666, sync: bool = True) -> None:
    """Write a new file and sync it. Raises OSError, where the file exists too."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def move_folder(part: Path, place: Path) -> None:
    """Rename a folder whose files are synced to its place. Raises OSError where that holds files."""
    sync_folder(part)
    part.rename(place)
    sync_folder(place.parent)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk. Raises OSError."""
    with path.open("rb" if os.name == "posix" else "r+b") as file:  # Windows syncs writable files alone
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Do nothing where the system opens no folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path, remedy: str = "") -> Iterator[None]:
    """Raise DiskError, naming ``path`` and the remedy, for an OSError inside the block."""
    try:
        yield
    except OSError as error:
        remedy = remedy and f"; {remedy}"
        raise DiskError(f"{path} cannot be written: {error.strerror or error}{remedy}") from error
