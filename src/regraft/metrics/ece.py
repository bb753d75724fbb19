"""ECE: distance of confidence from accuracy, over 15 bins of equal width.

    Σ_b |Σ_{i in b} w_i (right_i − confidence_i)| / Σ_i w_i

The confidence of a row is its highest probability, right_i whether that class is the true one.
Classification; 0 is best. Guo, Pleiss, Sun and Weinberger 2017, 1706.04599, eq. 3. Biased upwards
where bins hold few rows. The percentiles of its bootstrap lie higher still and miss the true value of a
calibrated model, so it has no interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "expected calibration error"

targets = "class"

higher_is_better = False

proportion = False

bounded = True

interval = False

BINS = 15


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    confidence, right, bins = binned(truth, scores)
    inside = np.eye(BINS)[bins] * (right - confidence)[:, None]  # [N, BINS]

    def error(weights: FloatArray) -> FloatArray:
        gaps = weights @ inside  # [R, BINS]
        result: FloatArray = np.abs(gaps).sum(axis=1) / weights.sum(axis=1)
        return result

    return error


def binned(truth: Any, scores: Any) -> tuple[FloatArray, FloatArray, Any]:
    """Return (confidence [N], right [N] of 0 and 1, bin [N] from 0). Bins are open below and closed above."""
    scores = np.asarray(scores, dtype=np.float64)
    confidence = scores.max(axis=1)
    right = (scores.argmax(axis=1) == truth).astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return confidence, right, bins
