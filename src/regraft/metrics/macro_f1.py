"""Macro-F1: the mean over classes of F1.

    F1_c = 2·tp_c / (truth_c + predicted_c),   each a sum of row weights

The mean runs over the classes that are true or predicted somewhere, as in scikit-learn's
f1_score(average="macro"); a class with no weight in a resample is left out of that resample's mean.
Never undefined, since every row has a true class. Classification, in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._classes import membership

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "macro-F1"

targets = "class"

higher_is_better = True

proportion = False

bounded = True


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    predicted, size = np.argmax(scores, axis=1), scores.shape[1]
    right = np.flatnonzero(predicted == truth)
    of_truth, of_predicted = membership(truth, size), membership(predicted, size)
    of_right = membership(truth[right], size)

    def macro(weights: FloatArray) -> FloatArray:
        by_row = np.ascontiguousarray(weights.T)  # [N, R]
        total = of_truth @ by_row + of_predicted @ by_row  # [C, R]
        f1 = 2 * (of_right @ by_row[right]) / np.where(total > 0, total, 1.0)  # [C, R]
        result: FloatArray = f1.sum(axis=0) / (total > 0).sum(axis=0)
        return result

    return macro
