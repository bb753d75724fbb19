"""Folders that are written beside their place, and swept once their writer is proven to be gone.

PARENT/NAME.<16 hex digits>.part/owner     a lock; see locks.py
PARENT/NAME.<16 hex digits>.part/content/  what is written, and renamed to its place when it is whole

A kill leaves such a folder. Its name says nothing of its writer: the lock alone does. A folder without
such a lock, with one of another user, or with one of which nothing is proven is left alone.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import locks
from .errors import DiskError

OWNER, CONTENT = "owner", "content"
NAME = re.compile(r".+\.[0-9a-f]{16}\.part")


@contextmanager
def work_folder(parent: Path, name: str, mode: int = 0o755) -> Iterator[Path]:
    """Make an empty folder for this process to write to; it is removed afterwards, unless it was renamed.

    Sweeps ``parent`` first. Raises DiskError where the disk does not take it.
    """
    sweep(parent)
    outer = parent / f"{name}.{secrets.token_hex(8)}.part"
    try:
        try:
            outer.mkdir(mode)
            locks.take(outer / OWNER)
            (outer / CONTENT).mkdir(mode)
        except OSError as error:
            raise DiskError(f"{parent} cannot be written: {error.strerror}") from error
        yield outer / CONTENT
    finally:
        locks.release(outer / OWNER)
        shutil.rmtree(outer, ignore_errors=True)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Make a folder that this user alone may read, among the system's temporary files, as ``work_folder``."""
    try:
        parent = Path(tempfile.gettempdir())
    except OSError as error:
        raise DiskError(f"no temporary folder can be written ({error}): set TMPDIR") from error
    with work_folder(parent, name, mode=0o700) as folder:
        yield folder


def sweep(parent: Path) -> list[Path]:
    """Remove what this user's writers in a folder left that are proven to be gone; → what went."""
    found = abandoned(parent)
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder for folder in found if not folder.exists()]


def abandoned(parent: Path) -> list[Path]:
    """Return the work folders in a folder whose writers are proven to be gone."""
    found = []
    with suppress(OSError):  # no such folder, or one that may not be read
        found = [p for p in parent.iterdir() if NAME.fullmatch(p.name) and is_abandoned(p)]
    return sorted(found)


def is_abandoned(folder: Path) -> bool:
    try:
        about = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(about.st_mode) or not is_own(about):
        return False
    lock = folder / OWNER
    return locks.holder(lock) is not None and locks.held(lock) is None


def is_own(about: os.stat_result) -> bool:
    """Return whether a file belongs to this user; where the system has no users, it does."""
    return not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
