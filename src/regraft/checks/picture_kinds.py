"""Pictures that regraft reads otherwise than their files suggest; each note says how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath

from PIL import Image

from ..data.types import Example, PictureFacts
from . import CheckContext, Finding, Need, Severity, findings_on
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset()

Test = Callable[[PictureFacts, str], bool]

KINDS: tuple[tuple[Severity, str, str, Test], ...] = (
    (
        "caution",
        "pictures are animated or have several pages",
        "regraft reads the first frame only; save the frame that you mean as a picture of its own",
        lambda f, suffix: f.animated,
    ),
    (
        "note",
        "pictures have more than 8 bits a channel",
        "regraft scales them by the range of their format without clipping, which may leave them dark",
        lambda f, suffix: f.deep,
    ),
    (
        "note",
        "pictures are CMYK",
        "regraft converts them without a colour profile, so colours may differ; save them as RGB",
        lambda f, suffix: f.mode == "CMYK",
    ),
    (
        "note",
        "pictures are turned or mirrored by an EXIF tag",
        "regraft reads them upright, also in predict; other tools may not",
        lambda f, suffix: f.orientation != 1,
    ),
    (
        "note",
        "pictures have the extension of another format",
        "regraft reads them by their content; rename them for other tools",
        lambda f, suffix: format_of(suffix) != f.format.replace("MPO", "JPEG"),  # MPO: JPEG with a camera's preview
    ),
)


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding for each kind of picture that occurs."""
    rows = [(split, e, e.facts) for split, e in rows_with_split(context) if e.facts]
    for severity, what, remedy, test in KINDS:
        examples = [
            f"{row_name(s, e)} ({f.format}, {f.mode}, {f.size[0]} × {f.size[1]})"
            for s, e, f in rows
            if test(f, suffix(e))
        ]
        yield from findings_on(severity, what, examples, len(rows), remedy)


def format_of(suffix: str) -> str:
    """Return the format of files with this suffix, or "" for a suffix that no picture has."""
    return Image.registered_extensions().get(suffix, "").replace("MPO", "JPEG")


def suffix(example: Example) -> str:
    """Return the suffix of a picture's file, in lower case."""
    return PurePath(example.inputs[0]).suffix.lower()
