"""Costs of decoding an image, from the structure of its file, before a pixel is decoded.

The number of pixels does not bound the time. A JPEG may draw the same pixels in 20,000 scans. A PNG may hold
a million empty chunks. A comment of a PPM costs a copy of the rest. The limits are far above what cameras
and editors write.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

MAX_SCANS = 100  # of a JPEG; progressive encoders write about 10

MAX_SEGMENTS = 20_000  # of a JPEG before its first scan, or chunks of a PNG without pixels

MAX_CHUNKS = 200_000  # of a PNG with pixels; encoders write 8 kB or more in each

MAX_COMMENTS = 1_000  # of a PBM, PGM or PPM

MAX_HEADER_BYTES = 65_536  # of a PBM, PGM or PPM: Pillow reads it byte by byte

SMALL_BYTES = 65_536  # a smaller file decodes quickly, whatever it holds

FEW_SCANS = 20  # of a JPEG that is decoded in this process

FEW_CHUNKS = 10_000  # of a PNG that is decoded in this process

LARGE_BYTES = 200_000_000  # the structure of a larger file is not read

PNG = b"\x89PNG\r\n\x1a\n"

START_OF_SCAN = b"\xff\xda"

SCAN, END_OF_IMAGE = 0xDA, 0xD9

WITHOUT_LENGTH = (0x01, 0xD8, END_OF_IMAGE)

MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # without restarts and stuffed bytes of pixels

COMMENT = re.compile(rb"#[^\r\n]*")

HEADER = re.compile(rb"P(?:[1-6f]|0CMYK|y[A-Z]+)\s")

VALUE = re.compile(rb"(?:\s|#[^\r\n]*+)*+[^\s#]+")


def excess(content: bytes) -> str | None:
    """Return why a file's content costs too much to decode; None where it does not, or is no image."""
    if content.startswith(b"\xff\xd8\xff"):
        return _excess_of_jpeg(content)
    if content.startswith(PNG):
        return _excess_of_png(content)
    if HEADER.match(content):
        return _excess_of_ppm(content)
    return None


def bounded(path: Path) -> bool:
    """Check whether a file decodes quickly, so that this process may decode it.

    The counts are upper bounds, however a decoder reads the file. A file that cannot be opened counts as
    quick, because its reader names the reason.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return True
            start = file.read(SMALL_BYTES)
            if not start.startswith((b"\xff\xd8\xff", PNG)):
                small = len(start) < SMALL_BYTES
                return small and start.count(START_OF_SCAN) <= FEW_SCANS  # a TIFF may hold JPEGs
            if about.st_size > LARGE_BYTES:
                return False
            content = start + file.read()
    except (OSError, ValueError):  # a name with a zero byte
        return True
    if content.startswith(PNG):
        return len(content) < SMALL_BYTES or sum(_chunks(content, FEW_CHUNKS)) <= FEW_CHUNKS
    if content.count(START_OF_SCAN) > FEW_SCANS:
        return False
    return _segments(content, MAX_SEGMENTS)[0] < MAX_SEGMENTS


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block


def _excess_of_jpeg(content: bytes) -> str | None:
    segments, at = _segments(content, MAX_SEGMENTS)
    if segments >= MAX_SEGMENTS:
        return f"it has more than {MAX_SEGMENTS} segments"
    if content.count(START_OF_SCAN) <= MAX_SCANS:
        return None
    scans = 0
    while marker := MARKER.search(content, at):
        kind, at = _after(content, marker)
        if kind == END_OF_IMAGE:  # another image may follow, which is not decoded
            break
        scans += kind == SCAN
        if scans > MAX_SCANS:
            return f"it has more than {MAX_SCANS} scans"
    return None


def _segments(content: bytes, most: int) -> tuple[int, int]:
    """Return the number of segments before a JPEG's first scan, and where that begins."""
    at, count = 0, 0
    while count < most and (marker := MARKER.search(content, at)):
        kind, after = _after(content, marker)
        if kind == SCAN:
            return count, marker.start()
        at, count = after, count + 1
    return count, at


def _after(content: bytes, marker: re.Match[bytes]) -> tuple[int, int]:
    """Return a marker's kind and the end of its segment."""
    kind, at = content[marker.end() - 1], marker.end()
    bare = kind in WITHOUT_LENGTH
    return kind, at if bare else at + int.from_bytes(content[at : at + 2])


def _excess_of_png(content: bytes) -> str | None:
    pixels, others = _chunks(content, MAX_CHUNKS)
    if others > MAX_SEGMENTS or pixels > MAX_CHUNKS:
        return "it has too many chunks"
    return None


def _chunks(content: bytes, most: int) -> tuple[int, int]:
    """Count a PNG's chunks with pixels and those without, at most ``most`` in all."""
    at, pixels, others, size = len(PNG), 0, 0, len(content)
    while at + 8 <= size and pixels + others <= most:
        if content[at + 4 : at + 8] == b"IDAT" and content[at : at + 4] != b"\0\0\0\0":
            pixels += 1
        else:
            others += 1
        at += 12 + int.from_bytes(content[at : at + 4])
    return pixels, others


def _excess_of_ppm(content: bytes) -> str | None:
    magic = HEADER.match(content)
    assert magic is not None
    end, values = (magic.end(), 2 if content[1:2] in b"14" else 3)  # width, height and the largest value
    for _ in range(values):
        value = VALUE.match(content, end, MAX_HEADER_BYTES)
        if value is None:
            long = len(content) > MAX_HEADER_BYTES
            return f"its header has more than {MAX_HEADER_BYTES} bytes" if long else None
        end = value.end()
    plain = content[1:2] in b"123"
    many = plain and any(i >= MAX_COMMENTS for i, _ in enumerate(COMMENT.finditer(content)))
    return f"it has more than {MAX_COMMENTS} comments" if many else None
