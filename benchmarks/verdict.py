"""Coverage and width of the verdict's interval, simulated.

    python benchmarks/verdict.py [--draws 4000] [--seed 0]

A row has a difficulty and an effect of transfer; a seed shifts all rows of an arm; each answer is a draw. The
accuracy of both arms over all seeds and rows is known, so each interval either covers the true gain or does not. For
each number of seeds S and of rows n, the table has the least and the mean coverage and the mean half-width over nine
pairs of seed spreads (standard deviations of the logit in the fit and in scratch). It has them for the interval of
``decide`` and for the one before it, which counted the noise of one row under one seed twice and paired the arms by
seed. The vectorised formula here is compared with ``decide`` itself on the first draws of each cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import t

from regraft.evidence.scoring import Predictions
from regraft.evidence.verdict import decide
from regraft.metrics import accuracy

SPREADS = ((0, 0), (0.05, 0.05), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.6, 0.6), (0, 0.2), (0.1, 0.3), (0.3, 0.1))
EFFECT = 0.4  # mean of the logit's gain; it varies as much over rows
CHECKED = 20  # draws of a cell that decide itself judges

Array = np.ndarray[Any, Any]


def chance(logit: Array) -> Array:
    """Return the probability of a right answer."""
    return 1 / (1 + np.exp(-logit))


def true_gain(fit: float, scratch: float) -> float:
    """Return the gain over all seeds and rows."""
    rng = np.random.default_rng(99)
    m = 4_000_000
    difficulty, effect = rng.normal(0.8, 1.5, m), EFFECT * (1 + rng.normal(size=m))
    helped = chance(difficulty + effect + fit * rng.normal(size=m))
    return float(np.mean(helped - chance(difficulty + scratch * rng.normal(size=m))))


def draws_of(rng: Any, seeds: int, n: int, spread: tuple[float, float], draws: int) -> Iterator[tuple[Array, Array]]:
    """Yield the right answers [R, S, N] of both arms, some draws at a time."""
    step = max(1, 4_000_000 // (seeds * n))
    for start in range(0, draws, step):
        r = min(step, draws - start)
        difficulty, effect = rng.normal(0.8, 1.5, (r, 1, n)), EFFECT * (1 + rng.normal(size=(r, 1, n)))
        shift = [s * rng.normal(size=(r, seeds, 1)) for s in spread]
        yield tuple(
            (rng.random((r, seeds, n)) < chance(difficulty + own + shifted)).astype(np.float64)
            for own, shifted in ((effect, shift[0]), (0.0, shift[1]))
        )  # type: ignore[misc]


def row_variances(difference: Array) -> Array:
    """Return V_rows of differences [..., N], with the pseudo-rows of a proportion."""
    n = difference.shape[-1] + 2
    return ((np.square(difference).sum(-1) + 1) / n - (difference.sum(-1) / n) ** 2) / n


def intervals(fit: Array, scratch: Array) -> tuple[Array, Array, Array]:
    """Return each draw's gain, its half-width, and the half-width that the interval before had."""
    seeds, n = fit.shape[1:]
    difference = fit - scratch
    gains = difference.mean(2)
    rows = row_variances(difference.mean(1))
    twice = (row_variances(difference).mean(1) - rows) / (seeds - 1)
    each = np.stack([a.mean(2).var(1, ddof=1) / seeds for a in (fit, scratch)])
    total = each.sum(0)
    squares = np.square(each).sum(0)
    freedom = np.where(total > 0, np.square(total) * (seeds - 1) / np.where(squares > 0, squares, 1), seeds - 1)
    of_rows = t.ppf(0.975, n - 1) ** 2
    kept = np.maximum(rows - (seeds - 2) / (seeds - 1) * twice, 1 / (n + 2) ** 2)
    now = np.sqrt(t.ppf(0.975, freedom) ** 2 * total + of_rows * kept)
    before = np.sqrt(t.ppf(0.975, seeds - 1) ** 2 * gains.var(1, ddof=1) / seeds + of_rows * rows)
    return gains.mean(1), now, before


def check(fit: Array, scratch: Array, gains: Array, half: Array) -> None:
    """Raise AssertionError where decide gives another interval than the formula here."""
    ids = tuple(map(str, range(fit.shape[2])))
    ones = np.ones(len(ids), int)
    for draw in range(min(CHECKED, len(fit))):
        arms = [[Predictions(ids, ones, np.eye(2)[s.astype(int)]) for s in a[draw]] for a in (fit, scratch)]
        found = decide(accuracy, list(zip(*arms, strict=True))).gain
        assert found is not None
        expected = max(gains[draw] - half[draw], -1), min(gains[draw] + half[draw], 1)
        np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    truths = {spread: true_gain(*spread) for spread in SPREADS}
    error = (0.95 * 0.05 / args.draws) ** 0.5
    print(f"{args.draws} draws a cell; standard error of a coverage {error:.4f}")
    print("S, n: coverage least (at spreads) mean, half-width; before: the same")
    for seeds, n in product((3, 4, 5, 10), (100, 300, 1_000)):
        table = []
        for spread in SPREADS:
            covered, width = np.zeros(2), np.zeros(2)
            for number, (fit, scratch) in enumerate(draws_of(rng, seeds, n, spread, args.draws)):
                gains, *halves = intervals(fit, scratch)
                if number == 0:
                    check(fit, scratch, gains, halves[0])
                covered += [np.sum(np.abs(gains - truths[spread]) <= h) for h in halves]
                width += [h.sum() for h in halves]
            table.append((covered / args.draws, width / args.draws))
        cover, half = (np.array([row[i] for row in table]) for i in (0, 1))  # [9, 2]
        least = SPREADS[int(cover[:, 0].argmin())]
        print(
            f"{seeds:>2}, {n:>4}: {cover[:, 0].min():.4f} {least} {cover[:, 0].mean():.4f}, {half[:, 0].mean():.4f}; "
            f"before {cover[:, 1].min():.4f} {cover[:, 1].mean():.4f}, {half[:, 1].mean():.4f} "
            f"({half[:, 0].mean() / half[:, 1].mean() - 1:+.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
