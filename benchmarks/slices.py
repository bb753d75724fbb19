"""How often a weak value of a column is named and called worse, and how often an even one is.

    python benchmarks/slices.py [--draws 400] [--rows 800] [--seed 0]

A draw has two columns: ten values of equal size, and twenty of unequal size, of which the rarest have about ten rows.
A planted value is one of the ten, where the model is right 22 points less often. For each metric the table has the
shares of draws that name it as the worst of its column, that call it worse, and that call another value worse. Without
a planted value it has the share of draws that call any value worse. "groups" draws rows in groups of four with one
difficulty, of which each lies in one value.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from regraft import plugins
from regraft.evidence.scoring import Predictions
from regraft.evidence.slices import slice_rows
from regraft.runs.slices import Slices
from regraft.tasks.classification import Classification

Array = np.ndarray[Any, Any]


def columns_of(rng: Any, n: int) -> dict[str, Array]:
    """Return two columns of n values: ten of equal size, and twenty of unequal size."""
    sizes = np.geomspace(1, 8, 20)
    return {"camera": np.arange(n) % 10, "site": rng.choice(20, n, p=sizes / sizes.sum())}


def rows_of(rng: Any, right: Array, classes: int, groups: Array | None) -> Predictions:
    """Return predictions of these right and wrong answers, with a confidence between 0.5 and 1."""
    n = len(right)
    truth = rng.integers(0, classes, n)
    answer = np.where(right, truth, (truth + rng.integers(1, classes, n)) % classes)
    confidence = rng.uniform(0.5, 1, n)
    scores = np.repeat(((1 - confidence) / (classes - 1))[:, None], classes, axis=1)
    scores[np.arange(n), answer] = confidence
    named = None if groups is None else tuple(map(str, groups))
    return Predictions(tuple(map(str, range(n))), truth, scores, named)


def draw(rng: Any, n: int, primary: str, accuracy: float, weak: float, classes: int, grouped: bool) -> Slices:
    """Return the slices of one draw."""
    columns, groups = columns_of(rng, n), None
    logit = np.zeros(n)
    if grouped:  # four neighbours share a group, a difficulty, and their values
        groups = np.arange(n) // 4
        columns = {name: values[groups] for name, values in columns.items()}
        columns["camera"] = groups % 10
        logit = 1.5 * rng.normal(size=n // 4 + 1)[groups]
    base = np.where(columns["camera"] == 3, weak, accuracy)
    # the mean over a normal logit of spread 1.5 is nearly that of a logit divided by √(1 + 1.5² · π/8)
    stretched = np.log(base / (1 - base)) * (np.sqrt(1 + 1.5**2 * np.pi / 8) if grouped else 1)
    right = rng.random(n) < 1 / (1 + np.exp(-stretched - logit))
    task = replace(Classification().make([(str(c),) for c in range(classes)], ("label",)), primary=primary)
    metrics = {primary: plugins.module("metrics", primary)}
    rows = rows_of(rng, right, classes, groups)
    return slice_rows(task, metrics, rows, {name: list(map(str, v)) for name, v in columns.items()})


CELLS = (  # metric, accuracy, classes, groups
    ("accuracy", 0.85, 2, False),
    ("accuracy", 0.97, 2, False),
    ("accuracy", 0.40, 5, False),
    ("accuracy", 0.85, 2, True),
    ("macro_f1", 0.85, 5, False),
    ("macro_f1", 0.85, 30, False),
    ("log_loss", 0.85, 5, False),
    ("log_loss", 0.85, 5, True),
    ("auc", 0.85, 2, False),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", help="this metric alone")
    given = parser.parse_args()
    print(f"{given.draws} draws of {given.rows} rows; a share of 0.05 has a standard error of", end=" ")
    print(f"{np.sqrt(0.05 * 0.95 / given.draws):.3f}")
    print("| metric | accuracy | classes | groups | named | called worse | another too | none planted: any |")
    print("|---|---|---|---|---|---|---|---|")
    for primary, accuracy, classes, grouped in CELLS:
        if given.metric not in (None, primary):
            continue
        rng = np.random.default_rng(given.seed)
        named = called = others = false = 0
        for _ in range(given.draws):
            planted = draw(rng, given.rows, primary, accuracy, accuracy - 0.22, classes, grouped)
            worse = [(column, value.value) for column, value in planted.worse()]
            named += planted.columns[0].values[0].value == "3"
            called += ("camera", "3") in worse
            others += bool(set(worse) - {("camera", "3")})
            even = draw(rng, given.rows, primary, accuracy, accuracy, classes, grouped)
            false += any(even.worse())
        shares = " | ".join(f"{x / given.draws:.3f}" for x in (named, called, others, false))
        print(f"| {primary} | {accuracy} | {classes} | {'yes' if grouped else 'no'} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
