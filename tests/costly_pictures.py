"""Small files that cost much to decode; the bytes are written by hand where no encoder would."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def ppm_of_comments(megabytes):
    """A PPM of 8 × 8 whose pixels come after empty comments: each costs Pillow a copy of the rest."""
    comments = b"#\n" * int(megabytes * 500_000)
    return b"P3\n8 8\n255\n" + comments + b"9 " * 192


def jpeg_of_scans(side, scans):
    """A progressive JPEG, grey, that draws the same nothing in so many scans."""
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")  # a refinement of all blocks
    return content[:last] + content[last:-2] * scans + content[-2:]


def colour_jpeg(side):
    """A progressive JPEG in colour without subsampling, as encoders write it: it takes most memory."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 40)).save(file, "JPEG", progressive=True, subsampling=0)
    return file.getvalue()


def png_of_chunks(megabytes):
    """A PNG of 8 × 8 with empty chunks before its pixels."""
    empty = _chunk(b"noTh", b"")
    return _png(8, 8, 0, b"\0" * 72, empty * int(megabytes * 1e6 / len(empty)))


def deep_png(width, height):
    """A grey PNG of 16 bits, all black."""
    packer = zlib.compressobj(1)
    row = b"\0" * (1 + 2 * width)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _png(width, height, 0, None, depth=16, packed=packed)


def gif_of_blocks(megabytes):
    """A GIF of 1 × 1 with a comment in blocks of one byte each, which Pillow joins one by one."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "GIF")
    content = file.getvalue()
    at = content.index(b",\0\0\0\0")  # its one image
    return content[:at] + b"!\xfe" + b"\x01a" * int(megabytes * 500_000) + b"\0" + content[at:]


def _png(width, height, colour, pixels, between=b"", depth=8, packed=None):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(pixels) if packed is None else packed
    chunks = _chunk(b"IHDR", header) + between + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
