"""Log loss: the mean over rows of −ln p(true class).

    Σ_i w_i · −ln max(p_i,truth_i, ε) / Σ_i w_i,   ε = 2.2e-16 (float64), as in scikit-learn

Classification; in nats, 0 is best, ln C is a guess without knowledge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


title = "log loss"

targets = "class"

higher_is_better = False

proportion = False

bounded = False


def rows(truth: Any, scores: Any) -> FloatArray:
    """Return nats [N] of truth [N] ints and probabilities [N, C]."""
    chosen = np.asarray(scores, dtype=np.float64)[np.arange(len(truth)), truth]
    result: FloatArray = -np.log(np.clip(chosen, np.finfo(np.float64).eps, 1.0))
    return result
