"""Picture files: their kind by their first bytes, and files for pictures that lie in the cells of a table.

All later steps read pictures by path. The sha256 of the content names a cell's file. Two tables with equal pictures
thus share files, and the rows have the ids that a folder of these files would give them.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..io.atomic import disk_errors, write_file
from ..io.places import pictures_root

FOLLOW = "--set data.follow_links=true follows links"

HEAD_BYTES = 16

PICTURE_STARTS = {  # first bytes → suffix
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"GIF87a": ".gif",
    b"GIF89a": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
}


def picture_suffix(head: bytes) -> str | None:
    """Return the usual suffix of a picture that begins with these bytes, or None for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return ".ppm"
    if head[:2] == b"BM" and len(head) >= 10 and head[6:10] != b"\0\0\0\0":
        return None  # bytes 6 to 9 of a bitmap are zero, so this is a text
    return next((s for start, s in PICTURE_STARTS.items() if head.startswith(start)), None)


def begins_as_picture(path: Path) -> bool:
    """Return whether a regular file begins as a picture. False for a file that cannot be opened."""
    try:
        with path.open("rb") as file:
            return picture_suffix(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def content_of(value: Any) -> bytes | None:
    """Return the bytes of a picture's cell (bytes, or a record with "bytes"), or None for a path."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def unpack(content: bytes) -> str:
    """Return the path of a file with this content. Writes the file if there is none.

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
