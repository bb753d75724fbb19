"""Verdict: does transfer help? The gain over training from scratch, averaged over seeds, with an interval.

    gain = (1/S) Σ_s g_s,   g_s the gain of seed s on the primary metric, positive is better
    interval = gain ± √(t²_{S−1} · V_seeds + t²_{n−1} · V_rows)
    V_seeds  = Σ_s (g_s − gain)² / (S (S − 1))
    V_rows   = variance over rows of the seed-averaged difference / n

Each variance has the t of its own degrees of freedom, and the squared half-widths add (Howe 1974, JASA
69:789; Zou and Donner 2008, Stat. Med. 27:1693). Satterthwaite's pooled degrees of freedom take a variance
that is small by chance for a known one. With 3 seeds that vary about as much as the rows, they covered
91.8 % in 1,200 simulations; this interval covered 96.0 %.
Both seeds and rows are samples: the claim is about the method on such data, not about these models.
The sum counts the noise of one row under one seed twice, which makes the interval slightly too wide.
Groups of rows count as one unit each. Proportions have the pseudo-rows of Agresti and Min 2005
(Stat. Med. 24:729): half a row +1, half a row −1 and one 0. The interval thus has a width even without
discordant rows. A metric that is no mean over rows has the bootstrap variance of the averaged difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TYPE_CHECKING, cast

import numpy as np

from ..metrics import Metric
from ..runs.estimates import Estimate, Verdict, VerdictLabel
from .intervals import at_weights, group_codes, resample
from .scoring import PerRow, Predictions, gain, pair_rows, resample_count

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


MIN_SEEDS = 3  # with fewer the verdict is "not measured"


def decide(metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]]) -> Verdict:
    """Return the verdict from one (fine-tuned, scratch) pair a seed, all on the same test rows.

    The label is "not measured" without pairs, with fewer than 3 seeds or with fewer than 2 rows (groups). ``why`` then
    names what is missing. It also says that the interval is about these models only. Raises DataError where rows
    differ.
    """
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
    gains = sign * np.array([_difference(metric, [pair])(np.ones((1, n)))[0] for pair in pairs])
    rows = row_variance(metric, pairs)
    if seeds < MIN_SEEDS:
        estimate, _ = _interval(float(gains.mean()), 0.0, rows, 1, units - 1, metric, n)
        why = f"needs at least {MIN_SEEDS} seeds (--seeds {MIN_SEEDS}); the interval is about these four "
        return Verdict("not measured", estimate, seeds, why + "models, not the method")
    between = float(gains.var(ddof=1)) / seeds
    estimate, share = _interval(float(gains.mean()), between, rows, seeds - 1, units - 1, metric, n)
    words: VerdictLabel = "no evidence"
    if estimate.low > 0:
        words = "transfer helps"
    elif estimate.high < 0:
        words = "transfer hurts"
    over = f"{seeds} seeds and {n} test rows"
    if words != "no evidence":
        return Verdict(words, estimate, seeds, f"the interval over {over} leaves out 0")
    return Verdict(words, estimate, seeds, f"the interval over {over} holds 0{_advice(estimate, share)}")


def rows_to_settle(gain: Estimate, seed_share: float = 0.0) -> int | None:
    """Return how many more test rows would bring the interval clear of 0, if the gain is right.

        n · (1 − q) h² / (gain² − q h²) − n,   h the half-width, q = ``seed_share`` of h²

    With q = 0 that is n·(h / |gain|)² − n. More rows reduce the row variance only. Returns None at gain 0,
    above 20 n, and where the seeds' share q of h² alone spans 0: no number of rows is enough then.
    """
    half = (gain.high - gain.low) / 2
    left = gain.value**2 - seed_share * half**2
    if gain.value == 0 or left <= 0:
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

    count = max(2_000, resample_count(n) // len(pairs))  # a variance needs fewer resamples than percentiles
    of = _difference(metric, pairs)
    what = f"bootstrap of {metric.title}"
    values = resample(of, n, groups=first.groups, resamples=count, what=what)
    variance = float(values.var(ddof=1)) * size / (size - 1)
    # A metric in [0, 1] gets the floor that pseudo-rows would give.
    return max(variance, 1 / (size + 2) ** 2) if metric.bounded else variance


def _difference(metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]]) -> Callable[[FloatArray], FloatArray]:
    """Return metric(fine-tuned) − metric(scratch), averaged over pairs, as a function of row weights."""
    each = [tuple(at_weights(metric, s.truth, s.scores) for s in pair) for pair in pairs]

    def of(weights: FloatArray) -> FloatArray:
        total = np.zeros(len(weights))
        for fit, scratch in each:
            total += fit(weights) - scratch(weights)
        return total / len(pairs)

    return of


def _interval(
    value: float, between: float, rows: float, df_seeds: int, df_rows: int, metric: Metric, n: int
) -> tuple[Estimate, float]:
    """Return the t interval, and the seeds' share of its squared half-width."""
    from scipy.stats import t

    seeds = float(t.ppf(0.975, df_seeds)) ** 2 * between
    squared = seeds + float(t.ppf(0.975, df_rows)) ** 2 * rows
    if squared == 0:  # all seeds and rows agree, as with two equal models
        return Estimate(value, value, value, n), 0.0
    half = sqrt(squared)
    low, high = value - half, value + half
    if metric.bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    return Estimate(value, low, high, n), seeds / squared


def _advice(estimate: Estimate, share: float) -> str:
    """Return the end of a sentence that says what would settle it, or "" where nothing in reach would."""
    rows = rows_to_settle(estimate, share)
    if rows is not None:
        return f"; to settle it: about {rows} more test rows"
    if share > 0.5:
        return "; the seeds differ more than the rows: more seeds would narrow it, not more rows"
    return ""
