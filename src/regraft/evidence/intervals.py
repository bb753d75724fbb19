"""95 % intervals for figures on a test set.

    wilson             a proportion                              Wilson 1927
    newcombe_paired    a difference of paired proportions        Newcombe 1998, Stat. Med. 17:2635
    exact_difference   a difference of independent proportions   Zou and Donner 2008, Stat. Med. 27:1693
    bootstrap          any metric, percentile, by rows or groups  Efron and Tibshirani 1993, ch. 13

A resample is a vector of row weights: how often each row was drawn. A metric thus takes [R, N] weights at
once. A resample draws groups whole, such as all pictures of one patient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..io.progress import stage
from ..metrics import Metric
from ..runs.estimates import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray


Z = 1.959963984540054  # the 97.5 % point of the normal distribution

Z_ONE_SIDED = 1.6448536269514722  # the 95 % point of the normal distribution

ROUNDING = 1e-12  # of a metric's value; resamples that differ by less are alike

MAX_CHUNK_WEIGHTS = 400_000  # weights held at once; 3 MB each for draws, counts and floats fit a CPU cache

LEVEL = 0.95  # of an interval, where no other is asked for

Groups = Sequence[Hashable | None]  # [N]; None is a row on its own


def wilson(successes: float, n: float, z: float = Z) -> tuple[float, float]:
    """Return Wilson's score interval of successes / n, inside [0, 1] and never empty. n = 0 gives (0, 1).

    ``n`` may be an effective number of rows, see :func:`effective_rows`. ``z`` is the normal quantile.
    """
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(max(p * (1 - p), 0.0) / n + z**2 / (4 * n**2))
    # at p = 0 and 1 the formula misses the exact end by a rounding error
    return (0.0 if p <= 0 else max(0.0, middle - half)), (1.0 if p >= 1 else min(1.0, middle + half))


def newcombe_paired(a_only: float, b_only: float, both: float, neither: float, z: float = Z) -> tuple[float, float]:
    """Return the interval of (a_only − b_only) / n by Newcombe's method 10, a score interval.

        low  = d − √(dl₁² − 2φ·dl₁·du₂ + du₂²),   high = d + √(du₁² − 2φ·du₁·dl₂ + dl₂²)

    dl and du are the distances to Wilson's limits of each proportion. φ is their correlation, with n/2
    subtracted from a positive numerator. Without discordant rows the interval is wider than [0, 0].
    No rows give (−1, 1).
    """
    n = a_only + b_only + both + neither
    if n <= 0:
        return -1.0, 1.0
    first, second = both + a_only, both + b_only
    p1, p2 = first / n, second / n
    low1, high1 = wilson(first, n, z)
    low2, high2 = wilson(second, n, z)
    product = first * (n - first) * second * (n - second)
    numerator = both * neither - a_only * b_only
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    phi = numerator / sqrt(product) if product > 0 else 0.0
    dl1, du1, dl2, du2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    below = sqrt(max(dl1**2 - 2 * phi * dl1 * du2 + du2**2, 0.0))
    above = sqrt(max(du1**2 - 2 * phi * du1 * dl2 + dl2**2, 0.0))
    return max(-1.0, p1 - p2 - below), min(1.0, p1 - p2 + above)


def clopper_pearson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the exact interval of successes / n. Neither limit is too narrow at any share and number of rows.

    ``n`` may be an effective number of rows (Korn and Graubard 1998).
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def exact_difference(p: float, n: float, q: float, m: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of p − q, shares of ``n`` and ``m`` independent rows: squares of half-widths add.

        low  = d − √(dl₁² + du₂²),   high = d + √(du₁² + dl₂²)

    dl and du are the distances to the exact limits of each share. With Wilson's limits this is Newcombe's method 10,
    which at high levels rejects too often where a share near 1 has few rows.
    """
    low1, high1 = clopper_pearson(p * n, n, level)
    low2, high2 = clopper_pearson(q * m, m, level)
    below, above = sqrt((p - low1) ** 2 + (high2 - q) ** 2), sqrt((high1 - p) ** 2 + (q - low2) ** 2)
    return max(-1.0, p - q - below), min(1.0, p - q + above)


def group_codes(groups: Groups | None, n: int) -> NDArray[np.int64]:
    """Number each row's group from 0, [N]. A row whose group is None is a group of its own.

    Raises ValueError where the numbers of groups and rows differ.
    """
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} rows")
    seen: dict[Hashable, int] = {}
    keys = [("row", i) if g is None else ("group", g) for i, g in enumerate(groups)]
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def quantile_of(level: float) -> float:
    """Return the normal quantile of a two-sided interval: 1.96 for 0.95."""
    from scipy.stats import norm

    return Z if level == LEVEL else float(norm.ppf((1 + level) / 2))


def effective_rows(rows: FloatArray, groups: Groups | None, level: float = LEVEL) -> float:
    """Return how many independent rows the mean of ``rows`` [N] is worth, where rows come in groups.

        n_eff = n / deff · (z / t_{G−1})²,   deff = G/(G−1) · Σ_g (Σ_{i in g} e_i)² / Σ_i e_i²

    z and t are the quantiles of an interval of ``level``. e are the deviations from the mean. deff is the
    cluster-robust variance over the binomial one; t accounts for few groups (Korn and Graubard 1998). The result is
    between 1 and n. Rows that do not vary show no design effect: each group then counts as one row.
    """
    n = len(rows)
    codes = group_codes(groups, n)
    size = int(codes.max()) + 1
    if size == n or n == 0:
        return float(n)
    error = rows - rows.mean()
    spread = float(np.square(error).sum())
    if size == 1 or spread < 1e-12:
        return float(size)
    from scipy.stats import t

    sums = np.bincount(codes, weights=error, minlength=size)
    effect = max(size / (size - 1) * float(np.square(sums).sum()) / spread, 1.0)
    return max(1.0, n / effect * (quantile_of(level) / float(t.ppf((1 + level) / 2, size - 1))) ** 2)


def resample(
    function: Callable[[FloatArray], FloatArray],
    n: int,
    *,
    groups: Groups | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    what: str = "bootstrap",
) -> FloatArray:
    """Return ``function`` (row weights [r, N] → [r]) at every bootstrap resample, [R]. Weights are drawn in chunks."""
    rng = np.random.default_rng(seed)
    codes = group_codes(groups, n)
    size = int(codes.max()) + 1
    step = max(1, MAX_CHUNK_WEIGHTS // max(n, size))
    parts = []
    progress = stage(what, resamples, "resamples")
    for start in range(0, resamples, step):
        r = min(step, resamples - start)
        drawn = rng.integers(0, size, (r, size))  # numbers of groups, with replacement
        drawn += np.arange(r)[:, None] * size
        counts = np.bincount(drawn.ravel(), minlength=r * size).reshape(r, size)
        parts.append(function((counts if size == n else counts[:, codes]).astype(np.float64)))
        progress.advance(r)
    return np.concatenate(parts)


def value_of(metric: Metric, truth: Any, scores: Any) -> float:
    """Return the metric of these rows, without an interval."""
    return float(at_weights(metric, truth, scores)(np.ones((1, len(truth))))[0])


def at_weights(metric: Metric, truth: Any, scores: Any, **threshold: float) -> Callable[[FloatArray], FloatArray]:
    """Return the metric as a function of row weights [R, N] → [R].

    A metric with an ``at_weights`` of its own computes once what the weights do not change.
    """
    if own := getattr(metric, "at_weights", None):
        prepared: Callable[[FloatArray], FloatArray] = own(truth, scores, **threshold)
        return prepared
    if of_rows := getattr(metric, "rows", None):
        rows = of_rows(truth, scores)
        return lambda weights: np.asarray(weights @ rows / weights.sum(axis=1))
    value = cast(Any, metric).value
    return lambda weights: np.asarray(value(truth, scores, weights, **threshold))


def bootstrap(
    metric: Metric, truth: Any, scores: Any, *, groups: Groups | None = None, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Return a metric of truth [N, …] and scores [N, C] with its percentile bootstrap interval.

    The interval always holds the value; the percentiles of a biased metric may not. One row, and rows that are alike
    in all that the metric depends on, carry no interval, and neither does a metric with ``interval = False``.
    """
    of = at_weights(metric, truth, scores)
    return _percentile(of, len(truth), groups, resamples, seed, metric)


def bootstrap_difference(
    metric: Metric,
    truth: Any,
    scores_a: Any,
    scores_b: Any,
    *,
    groups: Groups | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Return metric(a) − metric(b) on the same rows and the same resamples; see :func:`bootstrap`."""
    first, second = at_weights(metric, truth, scores_a), at_weights(metric, truth, scores_b)

    def of(weights: FloatArray) -> FloatArray:
        return first(weights) - second(weights)

    return _percentile(of, len(truth), groups, resamples, seed, metric, level)


def _percentile(
    of: Callable[[FloatArray], FloatArray],
    n: int,
    groups: Groups | None,
    resamples: int,
    seed: int,
    metric: Metric,
    level: float = LEVEL,
) -> Estimate:
    """Return the value at weights of one with its percentile interval, if these rows carry one."""
    point = float(of(np.ones((1, n)))[0])
    if not getattr(metric, "interval", True):
        return Estimate.without_interval(point, n)
    what = f"bootstrap of {metric.title}"
    values = resample(of, n, groups=groups, resamples=resamples, seed=seed, what=what)
    if np.ptp(values) <= ROUNDING * max(1.0, abs(point)):
        return Estimate.without_interval(point, n)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(point, min(float(low), point), max(float(high), point), n)
