"""Metrics, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..compute.arrays import Targets


class Metric(Protocol):
    """A file of ``metrics/``: a module with these names and one of three functions.

    - ``rows(truth, scores)`` returns the values [N] whose mean over rows is the metric.
    - ``at_weights(truth, scores)`` returns the metric [R] as a function of row weights [R, N]. A bootstrap calls
      that function 10,000 times, so ``at_weights`` computes all that the weights do not change.
    - ``value(truth, scores, weights)`` returns the metric [R] at row weights [R, N].

    ``truth`` is [N] or [N, C], and ``scores`` are [N, C]. A metric whose bootstrap is biased has ``interval =
    False``: its estimates then come without one. A metric of labels may have ``thresholded = True``. Then
    ``at_weights`` or ``value`` takes the task's ``threshold`` as well.
    """

    title: str
    targets: Targets  # of the tasks that it is computed for
    higher_is_better: bool
    proportion: bool  # True for a share of rows: Wilson's interval, Newcombe's for a difference
    bounded: bool  # True for values in [0, 1], whose differences are in [-1, 1]
