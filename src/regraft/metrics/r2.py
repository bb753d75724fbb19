"""R²: the share of the targets' variance that the predictions explain; the mean over targets.

    R²_c = 1 − Σ_i w_i (truth_ic − score_ic)² / Σ_i w_i (truth_ic − mean_c)²

0 is the mean's, and it can be negative. Where the targets of a resample do not vary it has no
meaning: 1 where the predictions are exact, else 0, as in scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from regraft.types import FloatArray

title = "R²"
higher_is_better = True
proportion = False
per_row = False
bounded = False


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """truth [N, C], scores [N, C], weights [R, N] → [R]."""
    centred = truth - truth.mean(axis=0)  # against cancellation where the mean is large
    size = weights.sum(axis=1, keepdims=True)  # [R, 1]
    residual = weights @ np.square(truth - scores)  # [R, C]
    raw = weights @ np.square(centred)
    spread = raw - np.square(weights @ centred) / size
    varies = spread > 1e-12 * raw  # the rest is rounding
    explained = 1 - residual / np.where(varies, spread, 1.0)
    result: FloatArray = np.where(varies, explained, residual == 0).mean(axis=1)
    return result
