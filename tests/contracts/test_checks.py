"""What every check owes, on rows with everything wrong and on rows with nothing wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from regraft import plugins
from regraft.checks import CheckContext, Need
from regraft.data.types import Example, PictureFacts

NAMES = plugins.names("checks")


def facts(seed: int, **other) -> PictureFacts:
    """Of a picture like no other seed's."""
    rng = np.random.default_rng(seed)
    given = {
        "format": "JPEG",
        "mode": "RGB",
        "size": (64, 48),
        "deep": False,
        "animated": False,
        "orientation": 1,
        "hash": int(rng.integers(1, 2**63)),
        "mirrored": int(rng.integers(1, 2**63)),
        "thumb": rng.integers(0, 255, 256, np.uint8).tobytes(),
    }
    return PictureFacts(**{**given, **other})


def row(i: int, label: str, *, content: int | None = None, name: str = "", **other) -> Example:
    where = name or f"{label}/{i}.jpg"
    key = i if content is None else content
    return Example(
        f"{key:016x}-{i}", (where,), (label,), where, other.get("group"), facts(key, **other.get("facts", {}))
    )


def clean() -> CheckContext:
    """Ten rows each of two classes in train, three in val and test."""
    parts, i = {}, 0
    for split, n in (("train", 10), ("val", 3), ("test", 3)):
        rows = []
        for label in ("iris", "tulip"):
            rows += [row(i + k, label, group=f"{split} {i + k}") for k in range(n)]
            i += n
        parts[split] = tuple(rows)
    every = [e for part in parts.values() for e in part]
    right = {e.id: np.array([0.95, 0.05] if e.cells == ("iris",) else [0.05, 0.95]) for e in every}
    rng = np.random.default_rng(1)
    return CheckContext(
        "image",
        "classification",
        parts,
        lambda e: e.cells,
        features={e.id: rng.normal(size=8) for e in every},
        probabilities=right,
        classes=("iris", "tulip"),
        tokens={e.id: 5 for e in every},
        max_tokens=10,
        source_names=("ant, emmet", "bee"),
        source_rows=tuple(row(1000 + k, "ant") for k in range(5)),
    )


def dirty() -> CheckContext:
    """The same with something for every check."""
    seen = clean()
    train, val, test = (list(seen.splits[s]) for s in ("train", "val", "test"))
    alike = {"hash": train[3].facts.hash, "thumb": train[3].facts.thumb}
    test += [
        row(200, "iris", content=0, group="train 0"),  # in train too, and of the same group
        row(201, "tulip", content=1),  # in train as iris
        row(202, "iris", facts=alike),
        row(203, "Iris", facts={"animated": True, "deep": True, "mode": "CMYK", "orientation": 6}),
        row(204, "ants", name="test/204.png"),
        row(205, "iris", content=1000),  # in the source data
    ]
    every = [*train, *val, *test]
    said = {e.id: np.array([0.9, 0.05, 0.03, 0.02]) for e in every}
    order = ("iris", "tulip", "Iris", "ants")
    for e in every:
        said[e.id] = np.roll(said[e.id], order.index(e.cells[0]))
    for e in train[10:12]:  # tulips that look like iris
        said[e.id] = np.array([0.96, 0.02, 0.01, 0.01])
    return replace(
        seen,
        splits={"train": tuple(train), "val": tuple(val), "test": tuple(test)},
        unreadable=(("iris/bad.jpg", "it is empty"),),
        left_out=(("iris/pipe.jpg", "not a regular file"),),
        empty=("rose",),
        features=None,
        probabilities=said,
        classes=order,
        tokens={e.id: 20 for e in every},
    )


def texts(seen: CheckContext) -> CheckContext:
    """The same rows as texts, two of them short."""
    parts = {
        s: tuple(
            replace(e, inputs=(f"row {e.id} says {hashlib.sha256(e.id.encode()).hexdigest()}",), facts=None)
            for e in rows
        )
        for s, rows in seen.splits.items()
    }
    first, second, *others = parts["train"]
    parts["train"] = (replace(first, inputs=("a",)), replace(second, inputs=("!",)), *others)
    return replace(seen, kind="text", splits=parts, source_rows=())


def found(name: str, seen: CheckContext) -> list:
    return list(plugins.module("checks", name).check(seen))


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_needs(name):
    needs = plugins.module("checks", name).NEEDS
    assert isinstance(needs, frozenset)
    assert needs <= set(get_args(Need))


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_wrong_nothing_is_found(name):
    assert found(name, clean()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_check_finds_and_counts_with_place_and_remedy(name):
    seen = texts(dirty()) if name == "short_texts" else dirty()
    findings = found(name, seen)
    assert findings, f"{name} found nothing in data with everything wrong"
    for f in findings:
        assert 0 < f.count <= f.of
        assert 0 < len(f.examples) <= f.count
        assert f.what and f.remedy and "\n" not in f.what + f.remedy
        assert f.severity in ("problem", "caution", "note")


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_does_not_matter(name):
    for seen in (dirty(), texts(dirty())):
        turned = replace(
            seen,
            splits={s: rows[::-1] for s, rows in reversed(seen.splits.items())},
            source_rows=seen.source_rows[::-1],
        )
        assert found(name, turned) == found(name, seen)
