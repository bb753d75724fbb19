"""Balanced accuracy: the mean over classes of the share of each class's rows that are right.

    (1/|K|) Σ_{c in K} Σ_i w_i 1[truth_i = c] 1[right_i] / Σ_i w_i 1[truth_i = c]

K are the classes with weight in the resample (Brodersen et al. 2010; scikit-learn's
balanced_accuracy_score). Classification, in [0, 1]; never undefined, since some class has weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._classes import membership

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "balanced accuracy"

targets = "class"

higher_is_better = True

proportion = False  # a mean of proportions with different denominators

bounded = True


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    right = np.flatnonzero(np.argmax(scores, axis=1) == truth)
    of_truth, of_right = (membership(rows, scores.shape[1]) for rows in (truth, truth[right]))

    def balanced(weights: FloatArray) -> FloatArray:
        by_row = np.ascontiguousarray(weights.T)  # [N, R]
        support = of_truth @ by_row  # [C, R]
        recall = (of_right @ by_row[right]) / np.where(support > 0, support, 1.0)  # 0 where no support
        result: FloatArray = recall.sum(axis=0) / (support > 0).sum(axis=0)
        return result

    return balanced
