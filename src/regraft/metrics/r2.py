"""R²: the share of the targets' variance that the predictions explain; the mean over targets.

    R²_c = 1 − Σ_i w_i (truth_ic − score_ic)² / Σ_i w_i (truth_ic − mean_c)²

0 is the mean's, and it can be negative. Where the targets of a resample do not vary it has no
meaning: 1 where the predictions are exact, else 0, as in scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "R²"

targets = "numbers"

higher_is_better = True

proportion = False

per_row = False

bounded = False


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """truth [N, C], scores [N, C], weights [R, N] → [R]."""
    return at_weights(truth, scores)(weights)


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """truth, scores → the value [R] as a function of weights [R, N]."""
    centred = truth - truth.mean(axis=0)  # against cancellation where the mean is large
    squares, errors = np.square(centred), np.square(truth - scores)  # [N, C]

    def share(weights: FloatArray) -> FloatArray:
        size = weights.sum(axis=1, keepdims=True)  # [R, 1]
        residual = weights @ errors  # [R, C]
        raw = weights @ squares
        spread = raw - np.square(weights @ centred) / size
        varies = spread > 1e-12 * raw  # the rest is rounding
        explained = 1 - residual / np.where(varies, spread, 1.0)
        result: FloatArray = np.where(varies, explained, residual == 0).mean(axis=1)
        return result

    return share
