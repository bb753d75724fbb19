"""The manifest of a run: one line a row with its split, so that the same rows can be found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..io import guarded
from ..io.json_files import dumps
from ..runs import records
from .loading import content
from .types import Example, Splits

# ---------------------------------------------------------------- manifest


def write_manifest(splits: Splits, path: Path) -> None:
    """One JSON line a row: id, hash of the inputs, split, label cells, where it came from, group."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for split in ("train", "val", "test"):
            for example in getattr(splits, split):
                file.write(dumps(manifest_row(split, example)) + "\n")


def manifest_row(split: str, example: Example) -> dict[str, Any]:
    row = {
        "id": example.id,
        "hash": content(example),
        "split": split,
        "cells": list(example.cells),
        "where": example.where,
    }
    return row if example.group is None else {**row, "group": example.group}


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a manifest, one at a time. Raises UsageError for one that is missing or damaged."""
    for number, line in guarded.lines(path.parent, path.name):
        yield records.line_of(path.parent, path.name, number, line, records.ManifestRow)
