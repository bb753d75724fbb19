"""Checks that a file is still the one whose content was hashed."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import DataError
from ..io.hashing import file_digest
from .types import Example


class KnownFiles:
    """Pictures whose content was compared with what it was when the data were read, by the state of
    their file: a picture is hashed again only where that is another."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, int, int]] = {}

    def check(self, example: Example) -> None:
        """Raises DataError for a picture that is gone or another than when the data were read."""
        if example.facts is None:  # no picture that was identified by its content
            return
        path = Path(example.inputs[0])
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # reading it would say so, and never wait for a pipe
                return
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
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
