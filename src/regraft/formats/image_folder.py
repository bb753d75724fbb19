"""A folder of pictures: CLASS/*.jpg, or train|val|test/CLASS/*.jpg.

The class of a picture is the name of its folder; folders inside a class folder belong to it. Hidden
files are ignored. Links to folders, links that leave the data folder and anything that is not a
regular file are not followed; what is left out is said in a note.
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

    Raises DataError for a folder without classes, an empty class, or class folders beside splits.
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
            empty.append(str(folder.relative_to(path)))
        rows += [
            Row((str(p),), (folder.name,), p.relative_to(path).as_posix(), split) for p in found
        ]
    if empty:
        count = "1 class folder holds" if len(empty) == 1 else f"{len(empty)} class folders hold"
        raise DataError(
            f"{path}: {count} no picture: {shorten(empty)}; add pictures or remove the folder"
        )
    return RawData("image", tuple(rows), notes=_notes(path, {r.inputs[0] for r in rows}))


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


def _notes(path: Path, taken: set[str]) -> tuple[str, ...]:
    left = [str(p.relative_to(path)) for p in _walk(path) if str(p) not in taken]
    if not left:
        return ()
    return (
        f"{len(left)} files of {path} are no pictures in a class folder "
        f"(or are links), and were left out: {shorten(left)}",
    )


def _folders(path: Path) -> list[Path]:
    return sorted(
        p for p in path.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != "."
    )


def _split_folders(path: Path) -> list[Path]:
    """The folders named as splits that hold folders; "test" full of pictures is a class."""
    return [f for f in _folders(path) if f.name in SPLITS and _folders(f)]


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not a folder to enter, sorted, without hidden names."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _is_inside(path: Path, root: Path) -> bool:
    return not path.is_symlink() or path.resolve().is_relative_to(root)
