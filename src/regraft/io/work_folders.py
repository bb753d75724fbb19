"""Work folders: written beside their place, and removed once their writer is proven gone.

PARENT/NAME.<16 hex digits>.part/owner     the writer's lock; see locks.py
PARENT/NAME.<16 hex digits>.part/content/  the files, renamed to their place when they are complete

A kill leaves such a folder. Only the lock tells whether its writer is gone. A folder without a lock, or of
another user, or whose writer is not proven gone stays.
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

OLD_S = 86_400.0  # seconds without a change; a day

NAME = re.compile(r".+\.[0-9a-f]{16}\.part")


@contextmanager
def work_folder(parent: Path, name: str, mode: int = 0o755) -> Iterator[Path]:
    """Yield a new, empty folder; remove it afterwards, unless the caller renamed it.

    ``parent`` is swept first. Raises DiskError where the folder cannot be made.
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
    """Yield a ``work_folder`` among the system's temporary files that only this user may read."""
    try:
        parent = Path(tempfile.gettempdir())
    except OSError as error:
        raise DiskError(f"no temporary folder can be written ({error}): set TMPDIR") from error
    with work_folder(parent, name, mode=0o700) as folder:
        yield folder


def sweep(parent: Path) -> list[Path]:
    """Remove the abandoned work folders in a folder; return those that were removed."""
    folders = abandoned(parent)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder for folder in folders if not folder.exists()]


def abandoned(parent: Path) -> list[Path]:
    """Return the work folders in a folder whose writers are proven gone."""
    return [folder for folder in work_folders(parent) if locks.find_holder(folder / OWNER) is None]


def unproven(parent: Path) -> list[Path]:
    """Return the old work folders in a folder whose writers are not proven gone."""
    return [
        folder
        for folder in work_folders(parent)
        if (holder := locks.find_holder(folder / OWNER)) and not holder.here() and is_old(folder / CONTENT)
    ]


def work_folders(parent: Path) -> list[Path]:
    """Return this user's work folders in a folder."""
    named: list[Path] = []
    with suppress(OSError):  # no such folder, or one that may not be read
        named = sorted(p for p in parent.iterdir() if NAME.fullmatch(p.name))
    return [p for p in named if is_own_folder(p) and locks.read_holder(p / OWNER) is not None]


def is_own_folder(path: Path) -> bool:
    """Check whether a path is a folder, and no link, of this user."""
    with suppress(OSError):  # it was removed meanwhile
        about = path.lstat()
        return stat.S_ISDIR(about.st_mode) and is_own(about)
    return False


def is_old(path: Path) -> bool:
    """Check whether nothing was written to a file, or made in a folder, for OLD_S."""
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > OLD_S
    return False


def is_own(about: os.stat_result) -> bool:
    """Check whether a file belongs to this user; always true where the system has no user ids."""
    return not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
