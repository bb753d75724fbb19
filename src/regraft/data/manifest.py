"""The manifest of a run: one line a row with its split, so that the same rows can be found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..io import guarded
from ..io.json_files import dumps
from ..runs import records
from ..runs.side_files import ManifestRow
from .loading import content
from .types import Example, Splits

# ---------------------------------------------------------------- manifest


def write_manifest(splits: Splits, path: Path) -> None:
    """One JSON line a row: id, hash of the inputs, split, label cells, where it came from, group."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for split in ("train", "val", "test"):
            for example in getattr(splits, split):
                file.write(dumps(row_of(split, example)) + "\n")


def row_of(split: str, example: Example) -> dict[str, Any]:
    """Return a line of the manifest as JSON; ``group`` is only there if the row has one."""
    row = {
        "id": example.id,
        "hash": content(example),
        "split": split,
        "cells": list(example.cells),
        "where": example.where,
    }
    return row if example.group is None else {**row, "group": example.group}


def manifest_row(split: str, example: Example) -> ManifestRow:
    """Return a line of the manifest."""
    return ManifestRow(**row_of(split, example))


def read_manifest(path: Path) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest, one at a time. Raises UsageError for one that is missing or damaged."""
    for number, line in guarded.lines(path.parent, path.name):
        yield records.line_of(path.parent, path.name, number, line, ManifestRow)
