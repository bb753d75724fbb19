"""Classes that are too few, too small or missing, and how uneven they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import sort_names

NEEDS: frozenset[Need] = frozenset()

MIN_TRAIN_ROWS = 5  # rows of a class in train

MIN_EVALUATION_ROWS = 2  # in val or test

MAX_CLASS_RATIO = 100  # the largest class ÷ the smallest


def check(seen: CheckContext) -> Iterator[Finding]:
    if seen.empty:
        yield Finding(
            "caution",
            "class folders hold no picture and count as no class",
            len(seen.empty),
            len(seen.empty) + len({n for e in seen.rows for n in seen.names(e)}),
            sort_names(seen.empty),
            "add pictures or remove the folders",
        )
    counts = {s: Counter(n for e in rows for n in seen.names(e)) for s, rows in seen.splits.items()}
    train, everything = counts["train"], set().union(*counts.values())
    if not everything:
        return  # numbers
    total = len(everything)
    if len(everything) < 2:
        yield Finding(
            "problem",
            "class is all there is",
            1,
            1,
            tuple(everything),
            "add rows of another class: nothing can be told apart",
        )
    if strangers := sort_names(everything - set(train)):
        examples = tuple(f"{n} ({', '.join(f'{c[n]} in {s}' for s, c in counts.items() if c[n])})" for n in strangers)
        yield Finding(
            "problem",
            "classes are not in train",
            len(strangers),
            total,
            examples,
            "add rows of them to train, or remove them: fit stops at them",
        )
    for split in ("val", "test"):
        if not seen.splits[split]:
            continue
        if missing := sort_names(set(train) - set(counts[split])):
            yield Finding(
                "caution",
                f"classes of train are not in {split}",
                len(missing),
                total,
                missing,
                f"add rows of them to {split}: nothing is known of them there",
            )
        if few := sort_names(n for n in train if 0 < counts[split][n] < MIN_EVALUATION_ROWS):
            yield Finding(
                "note",
                f"classes have a single row in {split}",
                len(few),
                total,
                few,
                f"add rows of them to {split}: one row says next to nothing",
            )
    if few := sort_names(n for n in train if train[n] < MIN_TRAIN_ROWS):
        yield Finding(
            "caution",
            f"classes have fewer than {MIN_TRAIN_ROWS} rows in train",
            len(few),
            total,
            tuple(f"{n} ({train[n]})" for n in few),
            "add rows of them; until then nothing is drawn for val, and data.folds needs as many rows a class as folds",
        )
    if train and (ratio := max(train.values()) / min(train.values())) >= MAX_CLASS_RATIO:
        most, least = (f(train, key=lambda n: (train[n], n)) for f in (max, min))
        yield Finding(
            "caution",
            f"classes are uneven, the largest {ratio:,.0f} times the smallest",
            total,
            total,
            (f"{most} ({train[most]})", f"{least} ({train[least]})"),
            'judge by macro_f1 or balanced_accuracy; try fit.sampling = "balanced"',
        )
