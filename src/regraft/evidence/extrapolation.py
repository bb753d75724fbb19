"""Extrapolation of a learning curve to more labels, as a range.

    e(n) = e₁ + a · h(n ÷ n₁),   h(x) = (x^(−b) − 1) ÷ b, or −log x at b = 0,   a ≥ 0,  0 ≤ b ≤ 6

e is the error: 1 − metric, or the metric itself where lower is better; n₁ is the largest size. It is a power law with
a floor of e₁ − a/b, which describes learning curves of networks: Hestness et al. 2017, 1712.00409; Rosenfeld et al.
2020, 1909.12673. At b = 0 it is linear in log n, and at a large b it has ended. The floor is unknown, and few sizes
hardly bound it, so the answer is the range of e over all (e₁, a, b) that fit the curve:

    Q = rᵀ Σ⁻¹ r ≤ min Q + t²_ν,   r_i = ē_i − e(n_i),   Σ = s² (1/k + 1/(k − 1)) ((1 − ρ) I + ρ 11ᵀ),   ν = 2 (k − 1)

This is the profile likelihood interval of e(n) for m sizes and k folds. s² is the variance between folds, pooled over
sizes, and ρ the correlation between sizes within a fold. Folds share training rows, so the variance of their mean is
not s²/k: the second term is the correction of Nadeau and Bengio 2003 (Machine Learning 52:239). Sizes within a fold
are correlated, so s² has fewer than m (k − 1) degrees of freedom; 2 (k − 1) is what the simulation asks for.
benchmarks/learning_curve.py simulates how often the range holds the truth: a curve that falls ever faster on the
axis of log n is not of this kind, and is refused or missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .intervals import LEVEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray

MIN_SIZES = 4  # three parameters, and a size that could contradict them

FACTORS = (2, 4)  # times the largest number of labels

EXPONENTS = np.concatenate([[0.0], np.geomspace(0.02, 6.0, 80)])

MISFIT = 0.001  # a curve that the model would give less often has no extrapolation


@dataclass(frozen=True)
class Extrapolated:
    """The error that more labels may leave."""

    labels: int
    low: float
    high: float


def extrapolate(labels: Sequence[int], errors: NDArray[np.float64], level: float = LEVEL) -> list[Extrapolated]:
    """Return the range of the error at FACTORS times the largest of ``labels`` [m], which rise.

    ``errors`` [m, k] are those of k ≥ 2 folds, 0 or more. Returns an empty list for fewer than MIN_SIZES sizes, for
    folds without scatter, and for a curve that the model does not have beyond its scatter.
    """
    from scipy.stats import chi2, t

    sizes, folds = errors.shape
    spread = float(errors.var(axis=1, ddof=1).mean())  # s²
    if sizes < MIN_SIZES or not spread > 0:
        return []
    fit = CurveFit(
        np.asarray(labels, np.float64) / max(labels),
        errors.mean(axis=1),
        np.linalg.inv(spread * (1 / folds + 1 / (folds - 1)) * correlation(errors)),
    )
    nearest = int(np.argmin([fit.misfit(b) for b in EXPONENTS]))
    around = EXPONENTS[max(0, nearest - 1)], EXPONENTS[min(len(EXPONENTS) - 1, nearest + 1)]
    exponents = [*EXPONENTS, *np.linspace(*around, 200)]
    least = min(fit.misfit(b) for b in exponents)
    if least > chi2.ppf(1 - MISFIT, sizes - 3):
        return []
    bound = least + float(t.ppf((1 + level) / 2, 2 * (folds - 1))) ** 2
    found = []
    for factor in FACTORS:
        ends = [fit.ends(b, factor, bound) for b in exponents if fit.misfit(b) <= bound]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        found.append(Extrapolated(factor * max(labels), max(low, 0.0), max(high, 0.0)))
    return found


@dataclass(frozen=True)
class CurveFit:
    """The fit of (e₁, a) to a curve for a given b, by generalised least squares under a ≥ 0."""

    n: FloatArray  # [m], of which the largest is 1
    mean: FloatArray  # [m]
    inverse: FloatArray  # Σ⁻¹ [m, m]

    def misfit(self, b: float) -> float:
        """Return the least Q."""
        return self.q(b, self.best(b))

    def best(self, b: float) -> FloatArray:
        """Return the (e₁, a) of the least Q."""
        x = np.stack([np.ones_like(self.n), shape(self.n, b)], axis=1)  # [m, 2]
        free: FloatArray = np.asarray(
            np.linalg.solve(x.T @ self.inverse @ x, x.T @ self.inverse @ self.mean), np.float64
        )
        return free if free[1] >= 0 else np.array([self.level(b, 0.0), 0.0])

    def level(self, b: float, a: float) -> float:
        """Return the best e₁ for a given a."""
        weights = self.inverse.sum(0)
        return float((self.mean - a * shape(self.n, b)) @ weights / weights.sum())

    def q(self, b: float, p: FloatArray) -> float:
        """Return Q of (e₁, a)."""
        apart = self.mean - p[0] - p[1] * shape(self.n, b)
        return float(apart @ self.inverse @ apart)

    def ends(self, b: float, factor: float, bound: float) -> tuple[float, float]:
        """Return the least and the greatest e at ``factor`` times the largest size, over all (e₁, a) with Q ≤ bound."""
        x = np.stack([np.ones_like(self.n), shape(self.n, b)], axis=1)
        information = x.T @ self.inverse @ x
        centre = np.asarray(np.linalg.solve(information, x.T @ self.inverse @ self.mean), np.float64)
        v = np.array([1.0, float(shape(np.array([float(factor)]), b)[0])])
        way = np.linalg.solve(information, v)
        room = bound - self.q(b, centre)
        half = float(np.sqrt(max(room, 0.0) / (v @ way)))
        found = [centre + sign * half * way for sign in (-1, 1)]  # where the ellipse ends along v
        if min(p[1] for p in found) >= 0:
            return float(v @ found[0]), float(v @ found[1])
        flat = self.level(b, 0.0)  # at a = 0 the ellipse is an interval of e₁
        reach = float(np.sqrt(max(bound - self.q(b, np.array([flat, 0.0])), 0.0) / self.inverse.sum()))
        inside = [float(v @ p) for p in found if p[1] >= 0]
        return min([flat - reach, *inside]), max([flat + reach, *inside])


def shape(x: NDArray[np.float64], b: float) -> FloatArray:
    """Return h(x)."""
    return np.asarray((x**-b - 1) / b if b else -np.log(x))


def correlation(errors: NDArray[np.float64]) -> FloatArray:
    """Return (1 − ρ) I + ρ 11ᵀ [m, m]; ρ is the mean correlation of sizes over folds, no less than 0."""
    sizes = len(errors)
    apart = errors - errors.mean(axis=1, keepdims=True)
    covariance = apart @ apart.T
    rho = (covariance.sum() - np.trace(covariance)) / ((sizes - 1) * np.trace(covariance))
    rho = min(max(float(rho), 0.0), 0.9)
    return np.asarray((1 - rho) * np.eye(sizes) + rho)
