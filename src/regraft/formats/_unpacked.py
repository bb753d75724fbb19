"""Files for pictures that lie in the cells of a table, because all later steps read pictures by path.

The sha256 of the content names the file. Two tables with equal pictures thus share files, and the rows have the ids
that a folder of these files would give them.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from typing import Any

from ..io.atomic import disk_errors, write_file
from ..io.places import pictures_root
from ._content import HEAD_BYTES, picture_suffix


def content_of(value: Any) -> bytes | None:
    """Return the bytes of a picture's cell (bytes, or a record with "bytes"), or None for a path."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def unpack(content: bytes) -> str:
    """Return the path of a file with this content. Writes the file if there is none.

    Raises DiskError where it cannot be written.

    Raises DiskError where it cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    folder = pictures_root() / digest[:2]
    path = folder / f"{digest}{picture_suffix(content[:HEAD_BYTES]) or '.bin'}"
    with suppress(OSError):
        if path.is_file() and path.read_bytes() == content:
            return str(path)
    with disk_errors(path, "set REGRAFT_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, content, folder / f".part-{secrets.token_hex(8)}", mode=0o600, sync=False)
    return str(path)
