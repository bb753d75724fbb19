"""Metrics, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray, Targets


class Metric(Protocol):
    """A file of ``metrics/``: a module with these names.

    The mean over rows of a value has ``rows(truth, scores)``, which returns these values [N].

    It may have ``at_weights(truth, scores)``, which returns ``value`` as a function of the weights alone. A
    bootstrap calls that function 10,000 times, so ``at_weights`` computes all that the weights do not change.
    A metric of labels may have ``thresholded = True``. Then ``value`` takes the task's ``threshold`` as well.
    """

    title: str
    targets: Targets  # of the tasks that it is computed for
    higher_is_better: bool
    proportion: bool  # True for a share of rows: Wilson's interval, Newcombe's for a difference
    bounded: bool  # True for values in [0, 1], whose differences are in [-1, 1]

    def value(self, truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
        """Return the metric [R] of truth [N] or [N, C] and scores [N, C] at row weights [R, N]."""
        ...
