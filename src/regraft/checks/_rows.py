"""Rows as the checks name and compare them."""

from __future__ import annotations

from collections.abc import Iterable

from ..types import Example, Seen

LATER = (("val", "train"), ("test", "train"), ("test", "val"))  # a row of the first is news in both


def content(example: Example) -> str:
    """The part of an id that stands for the inputs' content."""
    return example.id.partition("-")[0]


def located(seen: Seen) -> list[tuple[str, Example]]:
    """Every row with its split, in an order that does not depend on that of the data."""
    return [
        (split, e)
        for split in ("train", "val", "test")
        for e in sorted(seen.splits.get(split, ()), key=key)
    ]


def key(example: Example) -> tuple[int, str, str]:
    """Row 2 before row 12."""
    return len(example.where), example.where, example.id


def place(split: str, example: Example) -> str:
    """Where a row stands, with its split where that is not said already."""
    return example.where if example.where.startswith(split) else f"{example.where} ({split})"


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (len(name), name)))
