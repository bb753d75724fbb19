"""Kinds of files by their first bytes, because a file's name may be wrong."""

from __future__ import annotations

from pathlib import Path

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
