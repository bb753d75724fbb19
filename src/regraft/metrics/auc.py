"""AUC: the chance that a row of a class scores above a row of another class; ties count half.

    AUC_c = Σ_{i in c} Σ_{j not in c} w_i w_j (1[s_ic > s_jc] + ½·1[s_ic = s_jc]) / (W_c · W_not c)

For two classes it is that of the second class's score; for more, the unweighted mean of each class against
the rest. The mean leaves out a class that is absent, or alone, in a resample. Where no class is left, the
value is ½, that of a guess. Classification, in [0, 1]. Hanley and McNeil 1982.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._ranks import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "AUC"

targets = "class"

higher_is_better = True

proportion = False

bounded = True


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    n, size = scores.shape
    of = ((truth == c, scores[:, c]) for c in (range(size) if size > 2 else [1]))
    ready = list(blocks(((own, s) for own, s in of if own.any() and not own.all()), n))

    def area(weights: FloatArray) -> FloatArray:
        by_row = np.ascontiguousarray(weights.T)  # [N, R]
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for block in ready:
            w = block.weigh(by_row)
            above = np.add.reduceat(w.positives * (w.below + w.upto), w.columns, axis=0) / 2
            pairs = w.positive * w.negative  # [K, R]
            total += (above / np.where(pairs > 0, pairs, 1.0)).sum(axis=0)
            count += (pairs > 0).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), 0.5)

    return area
