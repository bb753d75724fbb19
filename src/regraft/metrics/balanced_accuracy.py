"""Balanced accuracy: the mean over classes of the share of each class's rows that are right.

    (1/|K|) Σ_{c in K} Σ_i w_i 1[truth_i = c] 1[right_i] / Σ_i w_i 1[truth_i = c]

K are the classes with weight in the resample (Brodersen et al. 2010; scikit-learn's
balanced_accuracy_score). Classification, in [0, 1]; never undefined, since some class has weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from regraft.types import FloatArray

title = "balanced accuracy"
higher_is_better = True
proportion = False  # a mean of proportions with different denominators
per_row = False
bounded = True


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """truth [N] ints, scores [N, C], weights [R, N] → [R]."""
    member = np.eye(scores.shape[1])[truth]  # [N, C]
    right = (np.argmax(scores, axis=1) == truth)[:, None] * member  # [N, C]
    support = weights @ member  # [R, C]
    recall = (weights @ right) / np.where(support > 0, support, 1.0)  # 0 where no support
    result: FloatArray = recall.sum(axis=1) / (support > 0).sum(axis=1)
    return result
