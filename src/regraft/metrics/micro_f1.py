"""Micro-F1 of labels: F1 with every (row, label) cell counted together.

    F1 = 2·tp / (truth + predicted),   each a weighted count over rows and labels

A label is predicted where its score is at or above the threshold (the task's). Where no label is
true and none is predicted the value is 0, as in scikit-learn. Many labels a row, in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "micro-F1"

targets = "labels"

higher_is_better = True

proportion = False

bounded = True

thresholded = True  # at_weights takes the task's threshold


def at_weights(truth: Any, scores: Any, threshold: float = 0.5) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    predicted = (scores >= threshold).astype(np.float64)  # [N, C]
    both, either = (truth * predicted).sum(axis=1), (truth + predicted).sum(axis=1)  # [N]

    def micro(weights: FloatArray) -> FloatArray:
        total = weights @ either
        result: FloatArray = 2 * (weights @ both) / np.where(total > 0, total, 1.0)
        return result

    return micro
