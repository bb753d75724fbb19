"""Micro-F1 of labels: F1 with every (row, label) cell counted together.

    F1 = 2·tp / (truth + predicted),   each a weighted count over rows and labels

A label is predicted where its score is at or above the threshold (the task's). Where no label is
true and none is predicted the value is 0, as in scikit-learn. Many labels a row, in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from regraft.types import FloatArray

title = "micro-F1"
higher_is_better = True
proportion = False
per_row = False
bounded = True
thresholded = True  # value takes the task's threshold


def value(truth: Any, scores: Any, weights: FloatArray, threshold: float = 0.5) -> FloatArray:
    """truth [N, C] zeros and ones, scores [N, C], weights [R, N] → [R]."""
    predicted = (scores >= threshold).astype(np.float64)  # [N, C]
    hits = weights @ (truth * predicted).sum(axis=1)  # [R]
    total = weights @ (truth + predicted).sum(axis=1)
    result: FloatArray = 2 * hits / np.where(total > 0, total, 1.0)
    return result
