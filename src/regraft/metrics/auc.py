"""AUC: the chance that a row of a class scores above a row of another class; ties count half.

    AUC_c = Σ_{i in c} Σ_{j not in c} w_i w_j (1[s_ic > s_jc] + ½·1[s_ic = s_jc]) / (W_c · W_not c)

Two classes: that of the second class's score. More: the unweighted mean of one class against the
rest. A class that is absent, or alone, in a resample is left out of its mean; where no class is
left the value is ½, that of a guess. Classification, in [0, 1]. Hanley and McNeil 1982.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from regraft.types import FloatArray

title = "AUC"
higher_is_better = True
proportion = False
per_row = False
bounded = True


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """truth [N] ints, scores [N, C], weights [R, N] → [R]."""
    several = scores.shape[1] > 2
    total = np.zeros(len(weights))
    count = np.zeros(len(weights))
    for c in range(scores.shape[1]) if several else [1]:
        positive = truth == c  # [N]
        if not positive.any() or positive.all():
            continue
        negative = np.sort(scores[~positive, c])
        order = np.argsort(scores[~positive, c])
        # below[:, k] is the weight of the k lowest negatives, [R, N_negative + 1]
        below = np.zeros((len(weights), len(negative) + 1))
        np.cumsum(weights[:, np.flatnonzero(~positive)[order]], axis=1, out=below[:, 1:])
        under = below[:, np.searchsorted(negative, scores[positive, c], "left")]
        under += below[:, np.searchsorted(negative, scores[positive, c], "right")]
        own = weights[:, positive]  # [R, N_positive]
        pairs = own.sum(axis=1) * below[:, -1]  # [R]
        total += np.einsum("rp,rp->r", own, under) / 2 / np.where(pairs > 0, pairs, 1.0)
        count += pairs > 0
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)
