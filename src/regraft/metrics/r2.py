"""R²: the share of the targets' variance that the predictions explain; the mean over targets.

    R²_c = 1 − Σ_i w_i (truth_ic − score_ic)² / Σ_i w_i (truth_ic − mean_c)²

The mean has 0, and a worse model is below 0. Where the targets of a resample do not vary, R² is undefined: the
value is then 1 for exact predictions and 0 otherwise, as in scikit-learn.
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

bounded = False


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    centred = truth - truth.mean(axis=0)  # squares of a large mean would cancel
    squares, errors = np.square(centred), np.square(truth - scores)  # [N, C]

    def share(weights: FloatArray) -> FloatArray:
        size = weights.sum(axis=1, keepdims=True)  # [R, 1]
        residual = weights @ errors  # [R, C]
        raw = weights @ squares
        spread = raw - np.square(weights @ centred) / size
        varies = spread > 1e-12 * raw  # a smaller spread is rounding
        explained = 1 - residual / np.where(varies, spread, 1.0)
        result: FloatArray = np.where(varies, explained, residual == 0).mean(axis=1)
        return result

    return share
