"""Macro-F1 of labels: the mean over labels of F1.

    F1_l = 2·tp_l / (truth_l + predicted_l),   each a sum of row weights

A label is predicted where its score is at or above the threshold (the task's). A label neither true
nor predicted with any weight has no F1 and is left out (scikit-learn counts it as 0); where no
label is left the value is 0. Many labels a row, in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "macro-F1"

targets = "labels"

higher_is_better = True

proportion = False

bounded = True

thresholded = True  # at_weights takes the task's threshold


def at_weights(truth: Any, scores: Any, threshold: float = 0.5) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    predicted = (scores >= threshold).astype(np.float64)  # [N, C]
    either, both = truth + predicted, truth * predicted

    def macro(weights: FloatArray) -> FloatArray:
        total = weights @ either  # [R, C]
        f1 = 2 * (weights @ both) / np.where(total > 0, total, 1.0)
        result: FloatArray = f1.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)
        return result

    return macro
