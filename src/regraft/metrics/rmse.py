"""Root mean squared error, in the targets' own units; the mean over targets of each one's.

(1/C) Σ_c √( Σ_i w_i (truth_ic − score_ic)² / Σ_i w_i )
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "root mean squared error"

targets = "numbers"

higher_is_better = False

proportion = False

bounded = False


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    squares = np.square(truth - scores)  # [N, C]

    def error(weights: FloatArray) -> FloatArray:
        squared = weights @ squares / weights.sum(axis=1, keepdims=True)  # [R, C]
        result: FloatArray = np.sqrt(squared).mean(axis=1)
        return result

    return error
