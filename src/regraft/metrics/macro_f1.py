"""Macro-F1: the mean over classes of F1.

    F1_c = 2·tp_c / (truth_c + predicted_c),   each a sum of row weights

The mean runs over the classes that are true or predicted somewhere, as in scikit-learn's
f1_score(average="macro"); a class with no weight in a resample is left out of that resample's mean.
Never undefined, since every row has a true class. Classification, in [0, 1].
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


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """truth [N] ints, scores [N, C], weights [R, N] → [R]."""
    classes = np.eye(scores.shape[1])
    member = classes[truth]  # [N, C]
    predicted = classes[np.argmax(scores, axis=1)]  # [N, C]
    total = weights @ (member + predicted)  # [R, C]
    f1 = 2 * (weights @ (member * predicted)) / np.where(total > 0, total, 1.0)  # [R, C]
    result: FloatArray = f1.sum(axis=1) / (total > 0).sum(axis=1)
    return result
