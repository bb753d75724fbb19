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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DiskError
from . import locks

OWNER, CONTENT = "owner", "content"

OLD_S = 86_400.0  # a day

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
    return [folder for folder in work_folders(parent) if locks.held(folder / OWNER) is None]


def unproven(parent: Path) -> list[Path]:
    """Return the work folders in a folder of which nothing is proven, and which are old."""
    return [
        folder
        for folder in work_folders(parent)
        if (who := locks.held(folder / OWNER)) and not who.here() and is_old(folder / CONTENT)
    ]


def work_folders(parent: Path) -> list[Path]:
    """Return this user's work folders in a folder."""
    named: list[Path] = []
    with suppress(OSError):  # no such folder, or one that may not be read
        named = sorted(p for p in parent.iterdir() if NAME.fullmatch(p.name))
    return [p for p in named if is_own_folder(p) and locks.holder(p / OWNER) is not None]


def is_own_folder(path: Path) -> bool:
    with suppress(OSError):  # it has gone meanwhile
        about = path.lstat()
        return stat.S_ISDIR(about.st_mode) and is_own(about)
    return False


def is_old(path: Path) -> bool:
    """Return whether nothing was written to a file, or made in a folder, for OLD_S."""
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > OLD_S
    return False


def is_own(about: os.stat_result) -> bool:
    """Return whether a file belongs to this user; where the system has no users, it does."""
    return not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
