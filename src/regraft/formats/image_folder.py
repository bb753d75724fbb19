"""Folder of pictures: CLASS/*.jpg, or train|val|test/CLASS/*.jpg.

A picture's class is the name of its folder; folders inside a class folder belong to the class. Split folders may have
the names that people use ("Train", "test_set"). A file is a picture by its suffix, else by its first bytes. Hidden
files are ignored.

Without ``follow_links`` regraft follows no link to a folder and none out of the data folder, and it reads regular
files only. Notes name what is left out. A class folder that loses every file is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.types import RawData, Row, RowOptions
from ..errors import DataError, shorten
from ._pictures import FOLLOW, begins_as_picture
from ._splits import looks_like_split, split_of

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".png",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    }
)

# regraft cannot read these pictures. They are rows nevertheless, so that a message counts and names them.
UNREAD_PICTURE_SUFFIXES = frozenset(
    {
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".jpx",
        ".tga",
        ".psd",
        ".svg",
        ".ico",
        ".icns",
        ".eps",
        ".exr",
        ".hdr",
        ".dcm",
        ".nii",
        ".npy",
        ".npz",
        ".mat",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".raf",
    }
)

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})

CLOSED = "a folder that cannot be opened"

LINK_OUT = "a link out of the data folder"

LINK_TO_FOLDER = "a link to a folder"


def detects(path: Path) -> bool:
    """Return whether the path holds split folders, or class folders without a table beside them."""
    if not path.is_dir():
        return False
    if _split_folders(path, follow=False):
        return True
    if any(p.suffix.lower() in TABLE_SUFFIXES for p in path.iterdir()):
        return False
    # Links count here, so that the message of ``read`` can name the option that follows them.
    return any(_is_picture(p) for f in _folders(path, follow=True) for p in _walk(f, follow=False))


def read(path: Path, options: RowOptions) -> RawData:
    """Return every picture with its class, sorted by path.

    Raises DataError for a folder without classes or pictures, class folders beside splits, a class folder without a
    readable picture, and a folder that cannot be opened. With ``on_bad = "skip"`` the last two are left out.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder of pictures")
    if options.image or options.text or options.label or options.split or options.group:
        raise DataError(f"{path} is a folder of pictures, which has no columns to name")
    follow = options.follow_links
    classes, notes = _class_folders(path, follow)
    rows: list[Row] = []
    empty: list[str] = []
    emptied: list[str] = []
    subfolders_of: dict[str, list[str]] = {}
    root = path.resolve()
    for split, folder in classes:
        files = list(_walk(folder, follow)) if follow or not folder.is_symlink() else [folder]
        pictures = [p for p in files if _is_picture(p) and (follow or _is_inside(p, root))]
        name = folder.relative_to(path).as_posix()
        if not pictures:
            (emptied if files else empty).append(name)
        subfolders = sorted({p.relative_to(folder).parts[0] for p in pictures if p.parent != folder})
        if subfolders:
            subfolders_of[name] = subfolders
        rows += [Row((str(p),), (folder.name,), p.relative_to(path).as_posix(), split) for p in pictures]
    left_out = _left_out(path, {r.inputs[0] for r in rows}, follow)
    _refuse_lost(path, options, left_out, emptied, nothing_left=not rows)
    if not rows:
        raise DataError(f"{path}: its {len(classes)} class folders hold no picture: {shorten(empty + emptied)}")
    if subfolders_of:
        named = shorten([f"{', '.join(subfolders)} in {name}" for name, subfolders in subfolders_of.items()])
        notes.append(f"folders inside a class folder belong to that class: {named}")
    notes += _notes(path, left_out, empty + emptied)
    return RawData("image", tuple(rows), notes=tuple(notes), left_out=left_out, empty=tuple(empty + emptied))


def _class_folders(path: Path, follow: bool) -> tuple[list[tuple[str | None, Path]], list[str]]:
    """Return (split or None, class folder) of each class folder, and notes. Raises DataError."""
    splits = _split_folders(path, follow)
    folders = _folders(path, follow=True)
    if not splits:
        if len(folders) == 1 and (inner := _split_folders(folders[0], follow)):
            raise DataError(
                f"{path} holds nothing but the folder {folders[0].name}, which holds "
                f"{shorten([f.name for f in inner])}: give {folders[0]}"
            )
        if not folders:
            raise DataError(f"{path} has no class folders; a folder of pictures is CLASS/*.jpg")
        if follow or not any(f.is_symlink() for f in folders):
            _refuse_splits_as_classes(path, folders)
        return [(None, c) for c in folders], []
    unlabelled = [f for f in folders if f not in splits and split_of(f.name) and not f.is_symlink()]
    others = [f.name for f in folders if f not in splits and f not in unlabelled]
    if others:
        raise DataError(
            f"{path} has {shorten([f.name for f in splits])} and, beside them, "
            f"{shorten(others)}: put every class inside train, val or test"
        )
    notes = []
    renamed = [f"{f.name} is {split_of(f.name)}" for f in splits if f.name != split_of(f.name)]
    if renamed:
        notes.append(f"folders read as splits: {shorten(renamed)}")
    for folder in unlabelled:
        if split_of(folder.name) == "train":
            raise DataError(f"{folder} has no class folders: put its pictures into CLASS/*.jpg")
        count = sum(_is_picture(p) for p in _walk(folder, follow))
        notes.append(
            f"{folder.name} has no class folders: its {count} pictures have no labels and are left out "
            "(`regraft predict` takes them)"
        )
    return [(split_of(s.name), c) for s in splits for c in _folders(_inner(s), follow=True)], notes


def _refuse_splits_as_classes(path: Path, folders: Sequence[Path]) -> None:
    """Raise DataError for folders that are probably splits, where they would be read as classes.

    These are folders whose names all mean a split, one of them train. They are also folders that hold the same two or
    more folders, where a name looks like a split's ("X_train", "tst").
    """
    names = shorten([f.name for f in folders])
    meant = {split_of(f.name) for f in folders}
    if "train" in meant and None not in meant:
        tables = shorten(
            [
                p.relative_to(path).as_posix()
                for f in folders
                for p in sorted(f.iterdir())
                if p.suffix.lower() in TABLE_SUFFIXES
            ]
        )
        raise DataError(
            f"{path} holds {names} alone, named as splits, and no class folders in them: put their pictures "
            f"into CLASS/*.jpg, or give a table of files and labels{f', such as {tables}' * bool(tables)}"
        )
    names_inside = [{p.name for p in _folders(f, follow=False)} for f in folders]
    shared = set.intersection(*names_inside)
    if len(folders) > 1 and len(shared) > 1 and any(looks_like_split(f.name) for f in folders):
        raise DataError(
            f"{path}: {names} hold the same folders ({shorten(sorted(shared))}), so they seem to be splits and "
            "no classes: call them train, val and test, the names that are read as splits"
        )


def _inner(split: Path) -> Path:
    """Return the folder with a split's classes. Some data sets repeat the split's name inside it."""
    below = _folders(split, follow=False)
    same = len(below) == 1 and split_of(below[0].name) == split_of(split.name)
    return below[0] if same and _folders(below[0], follow=False) else split


def _refuse_lost(
    path: Path, options: RowOptions, left_out: Sequence[tuple[str, str]], emptied: Sequence[str], nothing_left: bool
) -> None:
    """Raise DataError for folders that cannot be opened and for classes without a readable picture.

    With ``on_bad = "skip"``, raise it only where no row is left.
    """
    if options.on_bad != "fail" and not nothing_left:
        return
    closed = [where for where, why in left_out if why == CLOSED]
    if closed:
        raise DataError(
            f"{path}: {len(closed)} folders cannot be opened: {shorten(closed)}; change their "
            "permissions, or leave them out with --on-bad skip"
        )
    if emptied:
        lost = [
            (where, why)
            for where, why in left_out
            if any(where == name or where.startswith(f"{name}/") for name in emptied)
        ]
        links = sum(why in (LINK_OUT, LINK_TO_FOLDER) for _, why in lost)
        what = shorten([f"{where} ({why})" for where, why in lost], 3)
        allow = f"; {FOLLOW}" if links else ""
        raise DataError(
            f"{path}: of {len(emptied)} class folders no file can be read as a picture "
            f"({shorten(emptied)}): {len(lost)} files or links, {what}{allow}; leave such folders out "
            "with --on-bad skip"
        )


def list_images(path: Path) -> list[Path]:
    """Return the pictures of an unlabelled folder at any depth, sorted, or the one file given.

    Raises DataError for a folder without pictures, and for links out of the folder, which regraft does not follow.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist")
    root = path.resolve()
    pictures = sorted(p for p in _walk(path, follow=False) if _is_picture(p))
    links = [p.relative_to(path).as_posix() for p in pictures if not _is_inside(p, root)]
    if links:
        raise DataError(
            f"{path}: {len(links)} of {len(pictures)} pictures are links out of the folder, which are not "
            f"followed: {shorten(links)}; give the files themselves"
        )
    if not pictures:
        raise DataError(f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return pictures


def _notes(path: Path, left_out: Sequence[tuple[str, str]], empty: list[str]) -> list[str]:
    """Return notes on empty class folders, links and other files that are left out."""
    notes = []
    if empty:
        count = "1 class folder" if len(empty) == 1 else f"{len(empty)} class folders"
        notes.append(f"{count} without a picture left out: {shorten(empty)}")
    links = [where for where, why in left_out if why in (LINK_OUT, LINK_TO_FOLDER)]
    if links:
        count = "1 link" if len(links) == 1 else f"{len(links)} links"
        notes.append(f"{count} out of {path} left out ({FOLLOW}): {shorten(links)}")
    others = [where for where, why in left_out if why not in (LINK_OUT, LINK_TO_FOLDER)]
    if others:
        count = "1 file" if len(others) == 1 else f"{len(others)} files"
        notes.append(f"{count} of {path} left out, no picture in a class folder: {shorten(others)}")
    return notes


def _left_out(path: Path, taken: set[str], follow: bool) -> tuple[tuple[str, str], ...]:
    """Return (place, reason) of everything in the folder that is no row."""
    left = [p for p in _walk(path, follow) if str(p) not in taken]
    return tuple((p.relative_to(path).as_posix(), _why(p)) for p in left)


def _why(path: Path) -> str:
    """Return the reason why a path is no row."""
    if path.is_symlink():
        if not path.exists():
            return "a link that leads nowhere"
        return LINK_TO_FOLDER if path.is_dir() else LINK_OUT
    if path.is_dir():
        return "a folder named like a picture" if os.access(path, os.R_OK | os.X_OK) else CLOSED
    if not path.is_file():
        return "not a regular file"
    return "not in a class folder" if _is_picture(path) else "not a picture"


def _folders(path: Path, follow: bool) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    return sorted(p for p in path.iterdir() if p.is_dir() and (follow or not p.is_symlink()) and p.name[0] != ".")


def _split_folders(path: Path, follow: bool) -> list[Path]:
    """Return the folders that have a split's name and hold folders.

    A folder "test" that holds pictures is a class. A name such as "Dev" counts only beside a train split.
    """
    splits = [f for f in _folders(path, follow) if split_of(f.name) and _folders(f, follow=True)]
    if any(split_of(f.name) == "train" for f in splits):
        return splits
    return [f for f in splits if f.name.lower() in ("val", "valid", "validation", "test")]


def _walk(folder: Path, follow: bool) -> Iterator[Path]:
    """Yield everything in a folder, depth first and sorted, without hidden names.

    Yields only those folders that cannot be opened or are named like a picture. Enters links to folders only with
    ``follow``, each folder once.
    """
    stack = [(folder, True)]  # a stack, because folders may be nested deeper than Python can recurse
    entered = set[Path]()
    while stack:
        path, enter = stack.pop()
        if not enter:
            yield path
            continue
        if follow:
            if path.resolve() in entered:
                continue  # a circle of links
            entered.add(path.resolve())
        try:
            with os.scandir(path) as entries:
                below = [
                    (Path(e.path), e.is_dir(follow_symlinks=follow)) for e in entries if not e.name.startswith(".")
                ]
        except OSError:
            yield path
            continue
        if path != folder and path.suffix.lower() in PICTURE_SUFFIXES:
            yield path
        stack += sorted(below, reverse=True)


def _is_picture(path: Path) -> bool:
    """Return whether a regular file is a picture by its suffix or its first bytes."""
    if not path.is_file():
        return False
    return path.suffix.lower() in PICTURE_SUFFIXES | UNREAD_PICTURE_SUFFIXES or begins_as_picture(path)


def _is_inside(path: Path, root: Path) -> bool:
    """Return whether a path is no link, or a link to a place in the root."""
    try:
        return not path.is_symlink() or path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False
