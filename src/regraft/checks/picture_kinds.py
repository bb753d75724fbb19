"""Pictures that are read otherwise than their file may suggest; each is read as the note says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath

from ..data.types import Example, PictureFacts
from . import CheckContext, Finding, Need, Severity
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset()

SUFFIXES = {
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},  # a JPEG with a camera's preview behind it
    "PNG": {".png"},
    "GIF": {".gif"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
    "PPM": {".ppm", ".pgm", ".pbm"},
}

Test = Callable[[PictureFacts, str], bool]

KINDS: tuple[tuple[Severity, str, str, Test], ...] = (
    (
        "caution",
        "pictures are animated or have several pages",
        "the first is used alone; save the frame that is meant as a picture of its own",
        lambda f, suffix: f.animated,
    ),
    (
        "note",
        "pictures have more than 8 bits a channel",
        "they are scaled by the range of their format, not clipped; that may leave them dark",
        lambda f, suffix: f.deep,
    ),
    (
        "note",
        "pictures are CMYK",
        "they are converted without a colour profile, so colours may differ; save them as RGB",
        lambda f, suffix: f.mode == "CMYK",
    ),
    (
        "note",
        "pictures are turned or mirrored by an EXIF tag",
        "they are read upright, here and in predict; other tools may not",
        lambda f, suffix: f.orientation != 1,
    ),
    (
        "note",
        "pictures have the extension of another format",
        "they are read by their content; rename them for other tools",
        lambda f, suffix: f.format in SUFFIXES and suffix not in SUFFIXES[f.format],
    ),
)


def check(seen: CheckContext) -> Iterator[Finding]:
    rows = [(split, e, e.facts) for split, e in rows_with_split(seen) if e.facts]
    for severity, what, remedy, test in KINDS:
        found = [(s, e, f) for s, e, f in rows if test(f, suffix(e))]
        if found:
            examples = tuple(f"{row_name(s, e)} ({f.format}, {f.mode}, {f.size[0]} × {f.size[1]})" for s, e, f in found)
            yield Finding(severity, what, len(found), len(rows), examples, remedy)


def suffix(example: Example) -> str:
    return PurePath(example.inputs[0]).suffix.lower()
