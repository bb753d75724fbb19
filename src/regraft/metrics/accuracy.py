"""Accuracy: the share of rows whose highest score is the true class's.

    accuracy = Σ_i w_i · 1[argmax_c scores_ic = truth_i] / Σ_i w_i

Ties go to the first class, as argmax does. Classification, a proportion in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


title = "accuracy"

targets = "class"

higher_is_better = True

proportion = True

bounded = True


def rows(truth: Any, scores: Any) -> FloatArray:
    """Return 1.0 where a row is right, else 0.0 [N], of truth [N] ints and scores [N, C]."""
    result: FloatArray = (np.argmax(scores, axis=1) == truth).astype(np.float64)
    return result
