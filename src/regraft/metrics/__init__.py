"""Metrics, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray, Targets


class Metric(Protocol):
    """A file of ``metrics/``: a module with these names.

    ``at_weights(truth, scores)``, which it may have, gives ``value`` as a function of the weights alone.
    A bootstrap calls that function often, so it should hold all that the weights do not change.
    """

    title: str
    targets: Targets  # of the tasks that it is computed for
    higher_is_better: bool
    proportion: bool  # of independent rows: Wilson's interval, Newcombe's for a difference
    bounded: bool  # a value in [0, 1], so that a difference is in [-1, 1]
    per_row: bool  # the metric is the mean over rows of ``rows(truth, scores)``

    def value(self, truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
        """truth [N] or [N, C], scores [N, C], row weights [R, N] → [R]."""
        ...
