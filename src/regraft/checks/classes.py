"""Classes that are too few, too small or missing, and how uneven they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import in_order

NEEDS: frozenset[Need] = frozenset()

FEW = 5  # rows of a class in train

FEW_TO_JUDGE = 2  # in val or test

UNEVEN = 100  # the largest class ÷ the smallest


def check(seen: CheckContext) -> Iterator[Finding]:
    if seen.empty:
        yield Finding(
            "caution",
            "class folders hold no picture and count as no class",
            len(seen.empty),
            len(seen.empty) + len({n for e in seen.rows for n in seen.names(e)}),
            in_order(seen.empty),
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
    if strangers := in_order(everything - set(train)):
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
        if missing := in_order(set(train) - set(counts[split])):
            yield Finding(
                "caution",
                f"classes of train are not in {split}",
                len(missing),
                total,
                missing,
                f"add rows of them to {split}: nothing is known of them there",
            )
        if few := in_order(n for n in train if 0 < counts[split][n] < FEW_TO_JUDGE):
            yield Finding(
                "note",
                f"classes have a single row in {split}",
                len(few),
                total,
                few,
                f"add rows of them to {split}: one row says next to nothing",
            )
    if few := in_order(n for n in train if train[n] < FEW):
        yield Finding(
            "caution",
            f"classes have fewer than {FEW} rows in train",
            len(few),
            total,
            tuple(f"{n} ({train[n]})" for n in few),
            "add rows of them; until then nothing is drawn for val, and data.folds needs as many rows a class as folds",
        )
    if train and (ratio := max(train.values()) / min(train.values())) >= UNEVEN:
        most, least = (f(train, key=lambda n: (train[n], n)) for f in (max, min))
        yield Finding(
            "caution",
            f"classes are uneven, the largest {ratio:,.0f} times the smallest",
            total,
            total,
            (f"{most} ({train[most]})", f"{least} ({train[least]})"),
            'judge by macro_f1 or balanced_accuracy; try fit.sampling = "balanced"',
        )
