"""Looks: the verdict after 3, 4, … 10 seeds, until it is decided or no further seed can decide it.

Look k has the verdict's interval at the level 1 − α_k. α grows with k, so that few seeds rarely decide by chance (an
α-spending rule: Lan and DeMets 1983, Biometrika 70:659). The intervals of all looks hold together with 95 %
confidence. The one at which a run ends thus holds too, whatever ended it (repeated confidence intervals: Jennison
and Turnbull 1989, J. R. Stat. Soc. B 51:305).

    α_k = 0.002 · k,   k = S − 2 for S = 3, 4, … 10 seeds

    ends if    the interval leaves out 0                                      decided
               |gain| ≤ t_{n−1} · √(V_rows − R) at the level of the last look:
               what is left of the interval with any number of seeds          futile
               these are the most seeds                                       last

An end for futility makes verdicts fewer, so the error rate does not rest on it. Looks share the test rows and all
earlier seeds. benchmarks/looks.py therefore simulates the whole rule with the variances of evidence/verdict.py. 0.002
is what keeps false verdicts at 5 % there, in the worst cell too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..metrics import Metric
from ..runs.estimates import Verdict
from .scoring import Predictions
from .verdict import MIN_SEEDS, judge, measure

FIRST_LOOK = MIN_SEEDS  # seeds at the first look

MOST_SEEDS = 10  # at the last look

LOOKS = MOST_SEEDS - FIRST_LOOK + 1

ALPHA_STEP = 0.002  # α of the first look, and what each further look has more; by benchmarks/looks.py

Ends = Literal["", "decided", "futile", "last"]


@dataclass(frozen=True)
class Look:
    """The verdict after some seeds, and why no further seed is needed; "" if one is."""

    verdict: Verdict
    ends: Ends


def level_of_look(seeds: int) -> float:
    """Return the level of the interval at the look after so many seeds."""
    return 1 - ALPHA_STEP * (seeds - FIRST_LOOK + 1)


def look(metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]]) -> Look:
    """Return the verdict from 3 to 10 (fine-tuned, scratch) pairs, one a seed, on the same test rows.

    Raises DataError where rows differ, ValueError for another number of pairs.
    """
    if not FIRST_LOOK <= len(pairs) <= MOST_SEEDS:
        raise ValueError(f"looks are planned after {FIRST_LOOK} to {MOST_SEEDS} seeds, not {len(pairs)}")
    measured = measure(metric, pairs)
    if isinstance(measured, Verdict):  # too few rows, which no seed mends
        return Look(measured, "futile")
    level = level_of_look(len(pairs))
    verdict = judge(measured, level, LOOKS)
    if verdict.words in ("transfer helps", "transfer hurts"):
        return Look(verdict, "decided")
    if len(pairs) == MOST_SEEDS:
        return Look(verdict, "last")
    alone = measured.over_rows_alone(level_of_look(MOST_SEEDS))
    if not alone.has_interval or alone.low > 0 or alone.high < 0:
        return Look(verdict, "")
    return Look(judge(measured, level, LOOKS, futile=True), "futile")
