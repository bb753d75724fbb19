"""Fingerprints of files: whether a file still has the content that was hashed."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import DataError
from ..io.hashing import file_digest
from .types import Example


class KnownFiles:
    """Image files whose content was checked against the data as they were read.

    A file is hashed again only when its inode, size or time has changed.
    """

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, int, int]] = {}  # row's id → inode, bytes, time in ns

    def check(self, example: Example) -> None:
        """Raise DataError for an image file that is missing or has other content than the data had."""
        if example.facts is None:  # no image, or one that was not identified by its content
            return
        path = Path(example.inputs[0])
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):  # its reader refuses it, without waiting for a pipe
                return
            state = (about.st_ino, about.st_size, about.st_mtime_ns)
            if self.states.get(example.id) == state:
                return
            digest = file_digest(path)
        except OSError as error:
            raise DataError(
                f"{path} was there when the data were read and cannot be read now "
                f"({error.strerror or error}): put it back, then go on with --resume"
            ) from error
        if not digest.startswith(example.content):
            raise DataError(
                f"{path} was changed after the data were read: put back what it was and go on with "
                f"--resume, or begin another run"
            )
        self.states[example.id] = state
