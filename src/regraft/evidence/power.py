"""Power before a run: the gain that so many seeds and test rows show four times in five.

    power(d) = E Φ((d − h) / σ),   h² = t²_ν · V_seeds + t²_{n−1} · V_rows  as in evidence/verdict.py
    σ²       = Σ over arms (sd over seeds)² / S + (q − d²) / n,   q = DISAGREEMENT + d

V_seeds is what the seeds will show: each arm's variance times χ²_{S−1} / (S − 1). It is independent of the gain, so
the expectation is over χ² alone, one for each arm (Moser, Stevens and Watts 1989, Commun. Stat. Theory Methods
18:3963, for Welch's test). V_rows is taken as known: it has many degrees of freedom.

The assumptions are on the cautious side of the runs in docs/log.md. There the accuracy of a fit has an sd over seeds
of 0.001 to 0.027, mostly under 0.015, and that of scratch 0.004 to 0.026. By the intervals of single gains there, two
models disagree on 2 to 6 % of the rows beyond the gain. Here this disagreement is the rows': no seed averages it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import numpy as np

from ..data.columns import groups_of
from ..data.types import Example
from ..tasks import Task
from .intervals import LEVEL, group_codes
from .looks import LOOKS, MOST_SEEDS, level_of_look
from .verdict import MIN_SEEDS

Control = Literal["scratch", "linear probe"]

SEEDS_SD = 0.02  # of the accuracy over the seeds of an arm, assumed

DISAGREEMENT = 0.1  # share of rows that one model alone gets right, beyond the gain; assumed

POWER = 0.8  # four times in five

THE: dict[Control, str] = {"scratch": "scratch", "linear probe": "the linear probe"}

MAX_GAIN = 1 - DISAGREEMENT  # no larger gain leaves room for the disagreement

QUANTILES = 32  # of χ² for each arm


def power(gain: float, units: int, seeds: int, control: Control = "scratch", level: float = LEVEL) -> float:
    """Return the chance that the interval of ``level`` lies above 0 where the true gain in accuracy is ``gain``.

    ``units`` are test rows, or groups of them. Fewer than 3 seeds have an interval over rows alone, and the chance is
    that of these models. Raises ValueError for fewer than 2 units.
    """
    from scipy.stats import chi2, norm, t

    if units < 2:
        raise ValueError(f"needs at least 2 test rows, not {units}")
    share = DISAGREEMENT + gain
    rows = (share - gain**2) / units
    n = units + 2  # with the pseudo-rows of a proportion
    seen = ((units * share + 1) / n - (units * gain / n) ** 2) / n
    upper = (1 + level) / 2
    of_rows = float(t.ppf(upper, units - 1)) ** 2 * seen
    if seeds < MIN_SEEDS:
        return float(norm.cdf((gain - sqrt(of_rows)) / sqrt(rows)))
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    each = SEEDS_SD**2 / seeds * chi2.ppf(shares, seeds - 1) / (seeds - 1)  # [Q]
    if control == "scratch":
        between = each[:, None] + each  # [Q, Q]
        freedom = between**2 * (seeds - 1) / (each[:, None] ** 2 + each**2)
    else:  # there is one probe for all seeds
        between, freedom = each, np.full(QUANTILES, seeds - 1.0)
    half = np.sqrt(t.ppf(upper, freedom) ** 2 * between + of_rows)
    arms = 2 if control == "scratch" else 1
    return float(norm.cdf((gain - half) / sqrt(arms * SEEDS_SD**2 / seeds + rows)).mean())


def detectable_gain(units: int, seeds: int, control: Control = "scratch", level: float = LEVEL) -> float | None:
    """Return the gain in accuracy that is shown four times in five; None where none is. See :func:`power`."""
    from scipy.optimize import brentq

    def missing(gain: float) -> float:
        return power(gain, units, seeds, control, level) - POWER

    if units < 2 or missing(MAX_GAIN) < 0:
        return None
    return float(brentq(missing, 0.0, MAX_GAIN, xtol=1e-5))


def in_words(units: int, seeds: int | Literal["auto"], control: Control = "scratch", unit: str = "test rows") -> str:
    """Return what so many seeds and test rows (groups) can show, with the assumptions behind it.

    With "auto" it is what the last planned look can show, at the level of that look.
    """
    most, level = (MOST_SEEDS, level_of_look(MOST_SEEDS)) if seeds == "auto" else (seeds, LEVEL)
    over = f"{most} seed{'' if most == 1 else 's'} and {units:,} {unit}"
    over = f"up to {over}" if seeds == "auto" else over
    gain = detectable_gain(units, most, control, level)
    if gain is None:
        return f"{over} show no gain in accuracy over {THE[control]} four times in five, however large"
    arms = "each arm" if control == "scratch" else "the fit"
    spread = f"a spread over seeds of {100 * SEEDS_SD:g} points (sd) in {arms}"
    rows = f"1 row in {1 / DISAGREEMENT:g} that one model alone gets right, beyond the gain"
    text = f"{over} show a gain of {100 * gain:.2g} points of accuracy over {THE[control]} four times in five"
    if most < MIN_SEEDS:
        about = f"over test rows alone: about these models, not the method (--seeds {MIN_SEEDS})"
        return f"{text}, {about}; assuming {rows}"
    text += f", looked up to {LOOKS} times" if seeds == "auto" else ""
    return f"{text}, assuming {spread} and {rows}"


def before_run(test: Sequence[Example], task: Task, seeds: int | Literal["auto"], control: Control) -> str | None:
    """Return what these test rows can show with so many seeds; None without test rows, or for a task without accuracy.

    Of other metrics no spread can be assumed before a run.
    """
    if not len(test) or "accuracy" not in task.metrics:
        return None
    groups = tuple(groups_of(test))
    units = int(group_codes(groups, len(test)).max()) + 1
    text = in_words(units, seeds, control, "test rows" if units == len(test) else "groups of test rows")
    other = f"; what they show of {task.primary}, the primary metric, is not known before a run"
    return text + (other if task.primary != "accuracy" else "")
