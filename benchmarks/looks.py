"""False verdicts, power and number of seeds of ``--seeds auto``, simulated beside fixed numbers of seeds.

    python benchmarks/looks.py [--draws 20000] [--seed 0] [--gains 0 0.02 0.05 0.1] [--scan]

The rows are those of benchmarks/verdict.py, with one more spread: how much the effect of transfer differs from row to
row (the standard deviation of its logit). The mean effect is solved for, so that the true gain is what ``--gains``
says to rounding, for every pair of seed spreads. At gain 0 each verdict is false. For each cell the table has the
share of verdicts "helps" and "hurts", the mean number of seeds, the share that ended for futility and the mean gain
of those that help; then the first two shares with 3, 5 and 10 seeds and 95 %. ``--scan`` prints the false verdicts at
many steps of α, by which ``ALPHA_STEP`` was set, and those of one α for all looks. The vectorised rule is compared
with ``look`` itself on the first draws of each cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import t
from verdict import SPREADS, row_variances

from regraft.evidence.looks import ALPHA_STEP, FIRST_LOOK, LOOKS, MOST_SEEDS, look
from regraft.evidence.scoring import Predictions
from regraft.metrics import accuracy

ALL_SPREADS = (*SPREADS, (0.0, 0.6))

EFFECTS = (0.4, 1.5)  # spread of the effect over rows

ROWS = (100, 300, 1_000)

CHECKED = 10  # draws of a cell that look itself judges

STEPS = (0.0015, 0.002, 0.0025, 0.003, 0.004)  # of α, in a scan

CONSTANTS = (0.01, 0.0125, 0.02, 0.05)  # one α for all looks, in a scan

LOOK = np.arange(1, LOOKS + 1)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cell:
    """A population: its spreads in the logit, over the seeds of both arms and over the effect on rows."""

    fit: float
    scratch: float
    effect: float

    def mean_effect(self, gain: float) -> float:
        """Return the mean effect, in the logit, at which the true gain in accuracy is ``gain``."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        weights = weights / weights.sum()

        def accuracy_of(mean: float, *spreads: float) -> float:
            return float(weights @ expit(mean + np.sqrt(sum(s**2 for s in spreads)) * nodes))

        base = accuracy_of(0.8, 1.5, self.scratch)
        return float(brentq(lambda m: accuracy_of(0.8 + m, 1.5, self.effect, self.fit) - base - gain, -5, 20))

    def draws(self, rng: Any, n: int, gain: float, draws: int) -> Iterator[tuple[Array, Array]]:
        """Yield the right answers [R, S, N] of both arms, some draws at a time."""
        mean, seeds, step = self.mean_effect(gain), MOST_SEEDS, max(1, 2_000_000 // (MOST_SEEDS * n))
        for start in range(0, draws, step):
            r = min(step, draws - start)

            def normal(*shape: int, spread: float = 1.0) -> Array:
                drawn: Array = rng.standard_normal(shape, dtype=np.float32)
                return drawn * np.float32(spread)

            difficulty = np.float32(0.8) + normal(r, 1, n, spread=1.5)
            helped = difficulty + np.float32(mean) + normal(r, 1, n, spread=self.effect)
            arms = ((helped, self.fit), (difficulty, self.scratch))
            yield tuple(
                rng.random((r, seeds, n), dtype=np.float32) < expit(logit + normal(r, seeds, 1, spread=spread))
                for logit, spread in arms
            )  # type: ignore[misc]


@dataclass(frozen=True)
class Looks:
    """What each draw [R] shows at each look [L]."""

    gain: Array
    between: Array
    freedom: Array
    rows: Array
    rows_alone: Array

    @classmethod
    def of(cls, fit: Array, scratch: Array) -> Looks:
        """Return the looks at draws of right answers [R, S, N]."""
        n = fit.shape[2]
        difference = fit.astype(np.float32) - scratch
        each = row_variances(difference)  # [R, S]
        accuracies = [arm.mean(2) for arm in (fit, scratch)]
        total = np.cumsum(difference, axis=1)
        looks = []
        for s in range(FIRST_LOOK, MOST_SEEDS + 1):
            rows = row_variances(total[:, s - 1] / np.float32(s))
            twice = (each[:, :s].mean(1) - rows) / (s - 1)
            of_arms = np.stack([a[:, :s].var(1, ddof=1) / s for a in accuracies])
            between, squares = of_arms.sum(0), np.square(of_arms).sum(0)
            freedom = np.where(between > 0, between**2 * (s - 1) / np.where(squares > 0, squares, 1), s - 1)
            gain = (accuracies[0][:, :s] - accuracies[1][:, :s]).mean(1)
            least = 1 / (n + 2) ** 2
            kept, alone = (np.maximum(rows - k * twice, least) for k in ((s - 2) / (s - 1), 1))
            looks.append((gain, between, freedom, kept, alone))
        return cls(*(np.stack(part, axis=1) for part in zip(*looks, strict=True)))

    def half(self, alphas: Array, n: int) -> Array:
        """Return the half-width [R, L] of the interval at each look, from the α of each."""
        of_seeds = t.ppf(1 - alphas / 2, self.freedom) ** 2 * self.between
        return np.asarray(np.sqrt(of_seeds + t.ppf(1 - alphas / 2, n - 1) ** 2 * self.rows))

    def ended(self, alphas: Array, n: int) -> tuple[Array, Array, Array, Array]:
        """Return for each draw the look that ended it, its gain, its half-width, and whether it was futile."""
        half = self.half(alphas, n)
        decided = np.abs(self.gain) > half
        alone = t.ppf(1 - alphas[-1] / 2, n - 1) * np.sqrt(self.rows_alone)
        futile = ~decided & (np.abs(self.gain) <= alone)
        stop = decided | futile
        stop[:, -1] = True
        at = stop.argmax(1)
        here = np.arange(len(at))
        last = at == MOST_SEEDS - FIRST_LOOK
        return at, self.gain[here, at], half[here, at], futile[here, at] & ~last

    def fixed(self, seeds: int, n: int) -> tuple[float, float]:
        """Return the shares of "helps" and "hurts" with so many seeds and 95 %."""
        half = self.half(np.full(LOOKS, 0.05), n)[:, seeds - FIRST_LOOK]
        gain = self.gain[:, seeds - FIRST_LOOK]
        return float(np.mean(gain > half)), float(np.mean(gain < -half))


def joined(parts: list[Looks]) -> Looks:
    """Return the looks of several draws together."""
    names = ("gain", "between", "freedom", "rows", "rows_alone")
    return Looks(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def check(fit: Array, scratch: Array, looks: Looks, n: int) -> None:
    """Raise AssertionError where the product's own looks end elsewhere, or with another interval."""
    ids = tuple(map(str, range(n)))
    ones = np.ones(n, int)
    at, gains, half, _ = looks.ended(ALPHA_STEP * LOOK, n)
    for draw in range(min(CHECKED, len(fit))):
        arms = [[Predictions(ids, ones, np.eye(2)[s.astype(int)]) for s in a[draw]] for a in (fit, scratch)]
        for seeds in range(FIRST_LOOK, MOST_SEEDS + 1):
            found = look(accuracy, list(zip(arms[0][:seeds], arms[1][:seeds], strict=True)))
            if found.ends:
                break
        assert seeds == FIRST_LOOK + at[draw], (seeds, at[draw])
        expected = max(gains[draw] - half[draw], -1), min(gains[draw] + half[draw], 1)
        estimate = found.verdict.gain
        assert estimate is not None
        np.testing.assert_allclose((estimate.low, estimate.high), expected, rtol=1e-3, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gains", type=float, nargs="+", default=[0.0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--scan", action="store_true")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(
        f"{args.draws} draws a cell; standard error of 5 %: {(0.0475 / args.draws) ** 0.5:.4f}, of a half: twice that"
    )
    print(f"α step {ALPHA_STEP}; gain, rows, effect, spreads: helps hurts, seeds, futile, mean estimate of helps")
    for gain, n, effect in product(args.gains, args.rows, EFFECTS):
        for spreads in ALL_SPREADS if gain == 0 else SPREADS[1:5]:
            parts = []
            for fit, scratch in Cell(*spreads, effect).draws(rng, n, gain, args.draws):
                parts.append(Looks.of(fit, scratch))
                if len(parts) == 1:
                    check(fit, scratch, parts[0], n)
            looks = joined(parts)
            where = f"{gain:g}, {n}, {effect}, {spreads}"
            if args.scan:
                rates = []
                for alphas in (*(s * LOOK for s in STEPS), *(np.full(LOOKS, c) for c in CONSTANTS)):
                    _, value, half, _ = looks.ended(alphas, n)
                    rates.append(float(np.mean(np.abs(value) > half)))
                print(where + ": " + " ".join(f"{r:.4f}" for r in rates), flush=True)
                continue
            at, value, half, futile = looks.ended(ALPHA_STEP * LOOK, n)
            helps = value > half
            fixed = "; ".join(f"{s}: {a:.4f} {b:.4f}" for s in (3, 5, 10) for a, b in [looks.fixed(s, n)])
            print(
                f"{where}: {helps.mean():.4f} {(value < -half).mean():.4f}, {at.mean() + FIRST_LOOK:.2f}, "
                f"{futile.mean():.3f}, {value[helps].mean() if helps.any() else np.nan:.4f}; fixed {fixed}",
                flush=True,
            )


if __name__ == "__main__":
    main()
