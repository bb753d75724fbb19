"""Verdict: does transfer help? The gain over training from scratch, averaged over seeds, with an interval.

    gain = (1/S) Σ_s g_s,   g_s the gain of seed s on the primary metric, positive is better
    interval = gain ± √(t²_ν · V_seeds + t²_{n−1} · (V_rows − k·R))
    V_seeds  = (variance over seeds of the fit + that of scratch) / S, with Welch's degrees of freedom ν
    V_rows   = variance over rows of the seed-averaged difference / n
    R        = (mean over seeds of V_rows of that seed alone − V_rows) / (S − 1),   k = (S − 2) / (S − 1)

Each variance has the t of its own degrees of freedom, and the squared half-widths add (Howe 1974, JASA
69:789; Zou and Donner 2008, Stat. Med. 27:1693). Both seeds and rows are samples: the claim is about the
method on such data, not about these models. The noise of one row under one seed is in both variances; R is
its share, of which k is taken off again. The full share, and Satterthwaite's pooled degrees of freedom, cover
too rarely with three seeds. benchmarks/verdict.py simulates the coverage.

A fit and a scratch model of one seed share nothing that pairs them, so their variances over seeds are apart
(Welch 1947, Biometrika 34:28). Two evaluations of the same fit are paired: then V_seeds is the variance of
g_s / S, and ν = S − 1.

Groups of rows count as one unit each. Proportions have the pseudo-rows of Agresti and Min 2005
(Stat. Med. 24:729): half a row +1, half a row −1 and one 0. The interval thus has a width even without
discordant rows. A metric that is no mean over rows has the bootstrap variance of the averaged difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, cast

import numpy as np

from ..metrics import Metric
from ..runs.estimates import Estimate, Verdict
from .intervals import LEVEL, at_weights, group_codes, resample, value_of
from .scoring import PerRow, Predictions, gain, pair_rows, resample_count

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


MIN_SEEDS = 3  # with fewer the verdict is "not measured"


@dataclass(frozen=True)
class Measured:
    """The gain over seeds and rows, with the variances of its interval."""

    metric: Metric
    value: float
    seeds: int  # S
    n: int  # test rows
    units: int  # test rows, or groups of them
    between: float  # V_seeds
    freedom: float  # its degrees of freedom
    rows: float  # V_rows − k·R
    rows_alone: float  # V_rows − R: the variance that is left of it with any number of seeds

    def interval(self, level: float) -> tuple[Estimate, float]:
        """Return the interval of a level, and the seeds' share of its squared half-width."""
        return _interval(self, self.between, self.rows, level)

    def over_rows_alone(self, level: float) -> Estimate:
        """Return the interval of a level as if the number of seeds were infinite and the gain as seen."""
        return _interval(self, 0.0, self.rows_alone, level)[0]


def decide(metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]], *, paired: bool = False) -> Verdict:
    """Return the verdict from one (fine-tuned, scratch) pair a seed, all on the same test rows.

    ``paired`` says that both of a pair come from the same fit, so that their seed effects cancel. The label is "not
    measured" without pairs, with fewer than 3 seeds or with fewer than 2 rows (groups). ``why`` then names what is
    missing. It also says that the interval is about these models only. Raises DataError where rows differ.
    """
    measured = measure(metric, pairs, paired=paired)
    return measured if isinstance(measured, Verdict) else judge(measured)


def measure(
    metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]], *, paired: bool = False
) -> Measured | Verdict:
    """Return the gain with its variances, or the verdict "not measured" where something is missing; see decide."""
    if not pairs:
        return Verdict("not measured", None, 0, "no model trained from scratch: --controls scratch")
    first = pairs[0][0]
    pairs = [(pair_rows(first, a)[1], pair_rows(first, b)[1]) for a, b in pairs]
    seeds, n = len(pairs), len(first)
    units = int(group_codes(first.groups, n).max()) + 1
    if seeds == 1:
        why = f"needs at least {MIN_SEEDS} seeds (--seeds {MIN_SEEDS}); the interval is about these two "
        return Verdict("not measured", gain(metric, *pairs[0]), 1, why + "models, not the method")
    if units < 2:
        unit = "test rows" if first.groups is None else "groups of test rows"
        return Verdict("not measured", None, seeds, f"needs at least 2 {unit}")

    sign = 1.0 if metric.higher_is_better else -1.0
    arms = sign * np.array([[value_of(metric, s.truth, s.scores) for s in pair] for pair in pairs])  # [S, 2]
    value = float((arms[:, 0] - arms[:, 1]).mean())
    rows = row_variance(metric, pairs)
    if seeds < MIN_SEEDS:
        estimate = Measured(metric, value, seeds, n, units, 0.0, 1, rows, rows).interval(LEVEL)[0]
        why = f"needs at least {MIN_SEEDS} seeds (--seeds {MIN_SEEDS}); the interval is about these four "
        return Verdict("not measured", estimate, seeds, why + "models, not the method")
    between, freedom = seed_variance(arms, paired)
    twice = float((np.mean([row_variance(metric, [pair]) for pair in pairs]) - rows) / (seeds - 1))  # R
    least = _least_row_variance(metric, units)
    kept = max(rows - (seeds - 2) / (seeds - 1) * twice, least)
    return Measured(metric, value, seeds, n, units, between, freedom, kept, max(rows - twice, least, 0.0))


def judge(measured: Measured, level: float = LEVEL, looks: int = 1, futile: bool = False) -> Verdict:
    """Return the verdict from the interval of ``level``, which one of up to ``looks`` looks at test rows gave.

    ``futile`` says that further seeds were not fitted, because none could settle it.
    """
    estimate, share = measured.interval(level)
    seeds = measured.seeds
    over = f"{seeds} seeds and {measured.n} test rows"
    over += f", looked up to {looks} times," if looks > 1 else ""
    if not estimate.has_interval:
        why = f"{over} all differ by the same amount, which carries no interval"
        return Verdict("not decided", estimate, seeds, why)
    if estimate.low > 0:
        return Verdict("transfer helps", estimate, seeds, f"the interval over {over} leaves out 0")
    if estimate.high < 0:
        return Verdict("transfer hurts", estimate, seeds, f"the interval over {over} leaves out 0")
    why = f"over {over} a gain above {estimate.high:.3f} or a loss beyond {-estimate.low:.3f} is ruled out"
    why += "; at this gain the test rows alone leave it open, whatever the number of seeds" if futile else ""
    return Verdict("not decided", estimate, seeds, why + _advice(estimate, share))


def seed_variance(arms: FloatArray, paired: bool) -> tuple[float, float]:
    """Return V_seeds and its degrees of freedom, from the metric of both arms by seed, [S, 2]."""
    seeds = len(arms)
    if paired:
        return float((arms[:, 0] - arms[:, 1]).var(ddof=1)) / seeds, seeds - 1
    each = arms.var(axis=0, ddof=1) / seeds  # [2]
    total = float(each.sum())
    return total, total**2 * (seeds - 1) / float(np.square(each).sum()) if total else seeds - 1


def rows_to_settle(gain: Estimate, seed_share: float = 0.0) -> int | None:
    """Return how many more test rows would bring the interval clear of 0, if the gain is right.

        n · (1 − q) h² / (gain² − q h²) − n,   h the half-width, q = ``seed_share`` of h²

    With q = 0 that is n·(h / |gain|)² − n. The new interval then ends at 0 if nothing else changes, so chance decides:
    in simulations that many rows settled 48 to 67 % of cases. More rows reduce the row variance only. Returns None
    at gain 0, without an interval, above 20 n, and where the seeds' share q of h² alone spans 0: no number of rows is
    enough then.
    """
    half = (gain.high - gain.low) / 2
    left = gain.value**2 - seed_share * half**2
    if gain.value == 0 or not gain.has_interval or left <= 0:
        return None
    rows = gain.n * ((1 - seed_share) * half**2 / left - 1)
    return None if rows > 20 * gain.n else max(0, round(rows))


def row_variance(metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]]) -> float:
    """Return V_rows of the seed-averaged difference. Needs at least two rows (groups)."""
    first = pairs[0][0]
    n = len(first)
    codes = group_codes(first.groups, n)
    size = int(codes.max()) + 1  # G
    if hasattr(metric, "rows"):
        rows = cast(PerRow, metric).rows
        each = [rows(a.truth, a.scores) - rows(b.truth, b.scores) for a, b in pairs]
        difference = np.mean(each, axis=0)  # [N]
        middle = difference.mean()
        # Sum deviations from the mean, because the sizes of groups would otherwise add variance.
        sums = np.bincount(codes, weights=difference - middle, minlength=size)
        per_unit = middle + sums * size / n  # [G]; without groups the differences themselves
        if not metric.proportion:
            return float(per_unit.var(ddof=1)) / size
        mean = per_unit.sum() / (size + 2)
        return float((np.square(per_unit).sum() + 1) / (size + 2) - mean**2) / (size + 2)

    # A variance needs fewer resamples than percentiles, and that of one seed serves for a correction alone.
    count = max(2_000, resample_count(n) // max(5, len(pairs)))
    of = _difference(metric, pairs)
    what = f"bootstrap of {metric.title}"
    values = resample(of, n, groups=first.groups, resamples=count, what=what)
    variance = float(values.var(ddof=1)) * size / (size - 1)
    return max(variance, _least_row_variance(metric, size))


def _least_row_variance(metric: Metric, units: int) -> float:
    """Return the V_rows that pseudo-rows alone would give a metric in [0, 1]; 0 for another."""
    return 1 / (units + 2) ** 2 if metric.bounded else 0.0


def _difference(metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]]) -> Callable[[FloatArray], FloatArray]:
    """Return metric(fine-tuned) − metric(scratch), averaged over pairs, as a function of row weights."""
    each = [tuple(at_weights(metric, s.truth, s.scores) for s in pair) for pair in pairs]

    def of(weights: FloatArray) -> FloatArray:
        total = np.zeros(len(weights))
        for fit, scratch in each:
            total += fit(weights) - scratch(weights)
        return total / len(pairs)

    return of


def _interval(measured: Measured, between: float, rows: float, level: float) -> tuple[Estimate, float]:
    """Return the t interval with these variances, and the seeds' share of its squared half-width."""
    from scipy.stats import t

    value, n, upper = measured.value, measured.n, (1 + level) / 2
    seeds = float(t.ppf(upper, measured.freedom)) ** 2 * between
    squared = seeds + float(t.ppf(upper, measured.units - 1)) ** 2 * rows
    if squared == 0:  # all seeds and rows agree, as with two equal models
        return Estimate.without_interval(value, n), 0.0
    half = sqrt(squared)
    low, high = value - half, value + half
    if measured.metric.bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    return Estimate(value, low, high, n), seeds / squared


def _advice(estimate: Estimate, share: float) -> str:
    """Return the end of a sentence that says what would settle it, or "" where nothing in reach would."""
    rows = rows_to_settle(estimate, share)
    if rows is not None:
        return f"; if the gain is as seen, {rows} more test rows settle it in half of all cases: plan for {2 * rows}"
    if share > 0.5:
        return "; the seeds differ more than the rows: more seeds would narrow it, not more rows"
    return ""
