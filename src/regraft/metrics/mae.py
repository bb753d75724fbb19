"""Mean absolute error, in the targets' own units; the mean over targets where there are several.

Σ_i w_i · (1/C) Σ_c |truth_ic − score_ic| / Σ_i w_i
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


title = "mean absolute error"

targets = "numbers"

higher_is_better = False

proportion = False

bounded = False


def rows(truth: Any, scores: Any) -> FloatArray:
    """Return the error of each row [N] of truth [N, C] and scores [N, C]."""
    result: FloatArray = np.abs(truth - scores).mean(axis=1)
    return result
