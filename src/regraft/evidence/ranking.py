"""Ranking of models by one metric on the same rows, with paired differences to the best of them.

The best of K models is chosen by the rows that compare it, so each of the K(K − 1)/2 differences could have been the
one that is shown. Bonferroni over all of them keeps 95 % for the differences together, whichever model leads:

    level = 1 − 0.05 / (K(K − 1)/2)

Tukey's range would be exact for independent models with normal figures. Its half-width for 8 models is 3.03 standard
errors; this one is 3.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import TYPE_CHECKING

from .intervals import LEVEL
from .scoring import Predictions, estimates, gain

if TYPE_CHECKING:
    from ..metrics import Metric
    from ..runs.estimates import Estimate
    from ..tasks import Task


@dataclass(frozen=True)
class Entrant:
    """A model that is to be ranked."""

    name: str
    rows: Predictions
    loss: float  # mean over the rows


@dataclass(frozen=True)
class Ranked:
    """A model's place; the first of a ranking is the leader."""

    name: str
    value: Estimate  # of the primary metric, with its own 95 % interval
    loss: float
    difference: Estimate | None  # to the leader, negative is worse, simultaneous 95 %; None: the leader itself
    ties: bool  # whether the difference may be 0; True for the leader


def simultaneous_level(models: int) -> float:
    """Return the level of one difference, so that all differences between ``models`` hold together at 95 %."""
    return 1 - (1 - LEVEL) / max(1, models * (models - 1) // 2)


def rank(task: Task, metric: Metric, entrants: Sequence[Entrant]) -> list[Ranked]:
    """Return the models from the best to the worst by ``metric``, then by loss, then as given.

    All of them have the same rows. A difference without an interval is a tie: these rows do not tell the two apart.
    Raises DataError where rows or their truth differ.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    values = {id(e): estimates(task, {task.primary: metric}, e.rows)[task.primary] for e in entrants}

    def key(entrant: Entrant) -> tuple[float, float]:
        value = values[id(entrant)].value
        return (inf if isnan(value) else -sign * value), entrant.loss

    leader, *others = sorted(entrants, key=key)
    level = simultaneous_level(len(entrants))
    ranked = [Ranked(leader.name, values[id(leader)], leader.loss, None, True)]
    for entrant in others:
        difference = gain(metric, entrant.rows, leader.rows, level)
        ties = not difference.has_interval or difference.high >= 0
        ranked.append(Ranked(entrant.name, values[id(entrant)], entrant.loss, difference, ties))
    return ranked
