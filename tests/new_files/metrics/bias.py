"""Bias: the distance of the mean score to the mean truth, averaged over outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


title = "bias"

targets = "numbers"

higher_is_better = False

proportion = False

bounded = False


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """Return the bias [R] of truth [N, C] and scores [N, C] at weights [R, N]."""
    result: FloatArray = np.abs(weights @ (scores - truth) / weights.sum(axis=1, keepdims=True)).mean(axis=1)
    return result
