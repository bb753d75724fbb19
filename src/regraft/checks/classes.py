"""Classes that are too few, too small, missing or uneven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on
from ._rows import sort_names

NEEDS: frozenset[Need] = frozenset()

MIN_TRAIN_ROWS = 5  # rows of a class in train

MIN_EVALUATION_ROWS = 2  # in val or test

MAX_CLASS_RATIO = 100  # the largest class ÷ the smallest


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield findings on classes that a split lacks, that have few rows, or that are uneven."""
    counts = {s: Counter(n for e in rows for n in context.names(e)) for s, rows in context.splits.items()}
    classes = set().union(*counts.values())
    yield from findings_on(
        "caution",
        "class folders hold no picture and count as no class",
        sort_names(context.empty),
        len(context.empty) + len(classes),
        "add pictures or remove the folders",
    )
    if len(classes) == 1:
        yield from findings_on(
            "problem",
            "class is the only class",
            tuple(classes),
            1,
            "add rows of another class, because a classifier needs two",
        )
    absent = sort_names(classes - set(counts["train"]))
    yield from findings_on(
        "problem",
        "classes are not in train",
        [f"{n} ({', '.join(f'{c[n]} in {s}' for s, c in counts.items() if c[n])})" for n in absent],
        len(classes),
        "add rows of them to train, or remove their rows; fit stops at them",
    )
    for split in ("val", "test"):
        if context.splits[split]:
            yield from check_evaluation(split, counts[split], counts["train"], len(classes))
    yield from check_train(counts["train"], len(classes))


def check_evaluation(split: str, counts: Counter[str], train: Counter[str], total: int) -> Iterator[Finding]:
    """Yield findings on classes of train that val or test lack, or have a single row of."""
    yield from findings_on(
        "caution",
        f"classes of train are not in {split}",
        sort_names(set(train) - set(counts)),
        total,
        f"add rows of them to {split}, which cannot evaluate them without",
    )
    yield from findings_on(
        "note",
        f"classes have a single row in {split}",
        sort_names(n for n in train if 0 < counts[n] < MIN_EVALUATION_ROWS),
        total,
        f"add rows of them to {split}; one row gives no usable figure",
    )


def check_train(train: Counter[str], total: int) -> Iterator[Finding]:
    """Yield findings on classes with few rows in train, and on uneven classes."""
    few = sort_names(n for n in train if train[n] < MIN_TRAIN_ROWS)
    yield from findings_on(
        "caution",
        f"classes have fewer than {MIN_TRAIN_ROWS} rows in train",
        [f"{n} ({train[n]})" for n in few],
        total,
        "add rows of them; until then no val is drawn, and data.folds needs as many rows a class as folds",
    )
    if train and (ratio := max(train.values()) / min(train.values())) >= MAX_CLASS_RATIO:
        most, least = (pick(train, key=lambda n: (train[n], n)) for pick in (max, min))
        yield Finding(
            "caution",
            f"classes are uneven, the largest {ratio:,.0f} times the smallest",
            total,
            total,
            (f"{most} ({train[most]})", f"{least} ({train[least]})"),
            'compare by macro_f1 or balanced_accuracy; try fit.sampling = "balanced"',
        )
