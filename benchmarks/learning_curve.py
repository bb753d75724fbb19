"""How often does the range of an extrapolated learning curve hold the truth?

    python benchmarks/learning_curve.py [--draws 1000] [--seed 0]

Curves are drawn from four families: power laws with and without a floor, exponential and logarithmic ones, which the
model of the range does not contain. Folds scatter around the truth; half of the variance of a fold is shared by its
sizes, whose rows are nested, and folds share rows as in cross-validation (correlation 1/k). Figures are shares of
draws whose range at 2 and 4 times the labels holds the true error, with the mean width as a multiple of the error
between the last size and the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from regraft.evidence.extrapolation import FACTORS, extrapolate

FAMILIES: dict[str, Callable[[np.random.Generator], Callable[[np.ndarray], np.ndarray]]] = {}


def power(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    a, b, c = rng.uniform(0.2, 0.8), rng.uniform(0.2, 1.2), rng.uniform(0.02, 0.3)
    return lambda n: c + a * n**-b


def bare(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    a, b = rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.6)
    return lambda n: a * n**-b


def exponential(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    a, scale, c = rng.uniform(0.2, 0.6), rng.uniform(5, 20), rng.uniform(0.02, 0.3)
    return lambda n: c + a * np.exp(-n / scale)


def logarithmic(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    a, slope = rng.uniform(0.4, 0.7), rng.uniform(0.02, 0.06)
    return lambda n: np.maximum(a - slope * np.log(n), 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("family        sizes folds   sd   refused   held at 2×, 4×     mean width at 2×, 4×")
    for family in (power, bare, exponential, logarithmic):
        for sizes, k, sd in ((4, 5, 0.01), (4, 5, 0.04), (4, 3, 0.02), (6, 5, 0.02)):
            rng = np.random.default_rng(args.seed)
            labels = [5 * 2**i for i in range(sizes)]
            held, widths, refused = [], [], 0
            for _ in range(args.draws):
                truth = family(rng)
                found = extrapolate(labels, drawn(rng, truth(np.array(labels, float)), k, sd))
                if not found:
                    refused += 1
                    continue
                real = truth(np.array([f * labels[-1] for f in FACTORS], float))
                held.append([r.low <= x <= r.high for r, x in zip(found, real, strict=True)])
                widths.append([r.high - r.low for r in found])
            cover, width = np.mean(held, axis=0), np.mean(widths, axis=0)
            print(
                f"{family.__name__:<12}  {sizes:>5} {k:>5}   {sd:.2f}   {refused / args.draws:6.1%}"
                f"   {cover[0]:6.1%} {cover[1]:6.1%}      {width[0]:.3f} {width[1]:.3f}"
            )


def drawn(rng: np.random.Generator, truth: np.ndarray, k: int, sd: float) -> np.ndarray:
    """Return errors [m, k] of folds: half of a fold's variance is shared by its sizes, 1/k of it by all folds."""
    m = len(truth)
    shared, own = rng.normal(size=(1, k)), rng.normal(size=(m, k))
    every, each = rng.normal(size=(1, 1)), rng.normal(size=(m, 1))
    fold = np.sqrt(0.5) * shared + np.sqrt(0.5) * own
    common = np.sqrt(0.5) * every + np.sqrt(0.5) * each
    return np.asarray(truth[:, None] + sd * (np.sqrt(1 - 1 / k) * fold + np.sqrt(1 / k) * common))


if __name__ == "__main__":
    main()
