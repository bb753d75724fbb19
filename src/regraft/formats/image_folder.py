"""A folder of pictures: CLASS/*.jpg, or train|val|test/CLASS/*.jpg.

The class of a picture is the name of its folder; folders inside a class folder belong to it. Hidden
files are ignored. Links to folders, links that leave the data folder and anything that is not a
regular file are not followed; what is left out is said in a note, as is a class folder without a
picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, shorten
from ..types import DataOptions, RawData, Row

PICTURES = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
)
TABLES = frozenset({".csv", ".jsonl", ".parquet"})
SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


CLOSED = "a folder that cannot be opened"


def detects(path: Path) -> bool:
    """Whether the path holds split folders, or class folders and no table beside them."""
    if not path.is_dir():
        return False
    if _split_folders(path):
        return True
    table = any(p.suffix.lower() in TABLES for p in path.iterdir())
    return not table and any(_is_picture(p) for f in _folders(path) for p in _walk(f))


def read(path: Path, options: DataOptions) -> RawData:
    """Every picture with its class, sorted by path.

    Raises DataError for a folder without classes or pictures, class folders beside splits, and a folder
    that cannot be opened, unless bad rows are to be skipped.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder of pictures")
    if options.image or options.text or options.label or options.split or options.group:
        raise DataError(f"{path} is a folder of pictures, which has no columns to name")
    splits = _split_folders(path)
    classes: list[tuple[str | None, Path]]
    if splits:
        strangers = [f.name for f in _folders(path) if f not in splits]
        if strangers:
            raise DataError(
                f"{path} has {shorten([f.name for f in splits])} and, beside them, "
                f"{shorten(strangers)}: put every class inside train, val or test"
            )
        classes = [(SPLITS[s.name], c) for s in splits for c in _folders(s)]
    else:
        classes = [(None, c) for c in _folders(path)]
    if not classes:
        raise DataError(f"{path} has no class folders; a folder of pictures is CLASS/*.jpg")

    rows: list[Row] = []
    empty: list[str] = []
    root = path.resolve()
    for split, folder in classes:
        found = [p for p in _walk(folder) if _is_picture(p) and _is_inside(p, root)]
        if not found:
            empty.append(folder.relative_to(path).as_posix())
        rows += [
            Row((str(p),), (folder.name,), p.relative_to(path).as_posix(), split) for p in found
        ]
    left_out = _left_out(path, {r.inputs[0] for r in rows})
    closed = [where for where, why in left_out if why == CLOSED]
    if closed and options.on_bad == "fail":
        raise DataError(
            f"{path}: {len(closed)} folders cannot be opened: {shorten(closed)}; change their "
            "permissions, or leave them out with --on-bad skip"
        )
    if not rows:
        raise DataError(f"{path}: its {len(empty)} class folders hold no picture: {shorten(empty)}")
    return RawData("image", tuple(rows), notes=_notes(path, left_out, empty),
                   left_out=left_out, empty=tuple(empty))  # fmt: skip


def list_images(path: Path) -> list[Path]:
    """The pictures of an unlabelled folder at any depth, sorted; or the one file given.

    Raises DataError where there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist")
    root = path.resolve()
    found = sorted(p for p in _walk(path) if _is_picture(p) and _is_inside(p, root))
    if not found:
        raise DataError(f"{path} holds no picture ({', '.join(sorted(PICTURES))})")
    return found


def _notes(path: Path, left_out: tuple[tuple[str, str], ...], empty: list[str]) -> tuple[str, ...]:
    notes = []
    if empty:
        count = "1 class folder" if len(empty) == 1 else f"{len(empty)} class folders"
        notes.append(f"{count} without a picture left out: {shorten(empty)}")
    if left_out:
        notes.append(
            f"{len(left_out)} files of {path} are no pictures in a class folder "
            f"(or are links), and were left out: {shorten([where for where, _ in left_out])}"
        )
    return tuple(notes)


def _left_out(path: Path, taken: set[str]) -> tuple[tuple[str, str], ...]:
    """(where, why) of everything below that is no row."""
    left = [p for p in _walk(path) if str(p) not in taken]
    return tuple((p.relative_to(path).as_posix(), _why(p)) for p in left)


def _why(path: Path) -> str:
    if path.is_symlink():
        if not path.exists():
            return "a link that leads nowhere"
        return "a link to a folder" if path.is_dir() else "a link out of the data folder"
    if path.is_dir():
        return "a folder named like a picture" if os.access(path, os.R_OK | os.X_OK) else CLOSED
    if not path.is_file():
        return "not a regular file"
    named = path.suffix.lower() in PICTURES
    return "not in a class folder" if named else "not named like a picture"


def _folders(path: Path) -> list[Path]:
    return sorted(
        p for p in path.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != "."
    )


def _split_folders(path: Path) -> list[Path]:
    """The folders named as splits that hold folders; "test" full of pictures is a class."""
    return [f for f in _folders(path) if f.name in SPLITS and _folders(f)]


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder, depth first and sorted, without hidden names; of folders only those
    that cannot be opened or are named like a picture. Links are not entered."""
    stack = [(folder, True)]  # no recursion: folders may be deeper than Python's stack
    while stack:
        path, enter = stack.pop()
        if not enter:
            yield path
            continue
        try:
            with os.scandir(path) as found:
                below = [
                    (Path(e.path), e.is_dir(follow_symlinks=False))
                    for e in found
                    if not e.name.startswith(".")
                ]
        except OSError:
            yield path
            continue
        if path != folder and path.suffix.lower() in PICTURES:
            yield path
        stack += sorted(below, reverse=True)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return not path.is_symlink() or path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False
