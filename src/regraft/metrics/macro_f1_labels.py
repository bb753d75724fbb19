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
    from regraft.types import FloatArray

title = "macro-F1"
higher_is_better = True
proportion = False
per_row = False
bounded = True
thresholded = True  # value takes the task's threshold


def value(truth: Any, scores: Any, weights: FloatArray, threshold: float = 0.5) -> FloatArray:
    """truth [N, C] zeros and ones, scores [N, C], weights [R, N] → [R]."""
    predicted = (scores >= threshold).astype(np.float64)  # [N, C]
    total = weights @ (truth + predicted)  # [R, C]
    f1 = 2 * (weights @ (truth * predicted)) / np.where(total > 0, total, 1.0)
    result: FloatArray = f1.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)
    return result
