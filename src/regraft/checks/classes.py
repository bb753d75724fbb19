"""Classes that are too few, too small, missing or uneven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import sort_names

NEEDS: frozenset[Need] = frozenset()

MIN_TRAIN_ROWS = 5  # rows of a class in train

MIN_EVALUATION_ROWS = 2  # in val or test

MAX_CLASS_RATIO = 100  # the largest class ÷ the smallest


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield findings on classes that a split lacks, that have few rows, or that are uneven."""
    if context.empty:
        yield Finding(
            "caution",
            "class folders hold no picture and count as no class",
            len(context.empty),
            len(context.empty) + len({n for e in context.rows for n in context.names(e)}),
            sort_names(context.empty),
            "add pictures or remove the folders",
        )
    counts = {s: Counter(n for e in rows for n in context.names(e)) for s, rows in context.splits.items()}
    train, all_classes = counts["train"], set().union(*counts.values())
    if not all_classes:
        return  # numbers
    total = len(all_classes)
    if len(all_classes) < 2:
        yield Finding(
            "problem",
            "class is the only class",
            1,
            1,
            tuple(all_classes),
            "add rows of another class, because a classifier needs two",
        )
    if absent := sort_names(all_classes - set(train)):
        examples = tuple(f"{n} ({', '.join(f'{c[n]} in {s}' for s, c in counts.items() if c[n])})" for n in absent)
        yield Finding(
            "problem",
            "classes are not in train",
            len(absent),
            total,
            examples,
            "add rows of them to train, or remove their rows; fit stops at them",
        )
    for split in ("val", "test"):
        if not context.splits[split]:
            continue
        if missing := sort_names(set(train) - set(counts[split])):
            yield Finding(
                "caution",
                f"classes of train are not in {split}",
                len(missing),
                total,
                missing,
                f"add rows of them to {split}, which cannot evaluate them without",
            )
        if few := sort_names(n for n in train if 0 < counts[split][n] < MIN_EVALUATION_ROWS):
            yield Finding(
                "note",
                f"classes have a single row in {split}",
                len(few),
                total,
                few,
                f"add rows of them to {split}; one row gives no usable figure",
            )
    if few := sort_names(n for n in train if train[n] < MIN_TRAIN_ROWS):
        yield Finding(
            "caution",
            f"classes have fewer than {MIN_TRAIN_ROWS} rows in train",
            len(few),
            total,
            tuple(f"{n} ({train[n]})" for n in few),
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
