"""Mean average precision over labels: the area under each label's precision–recall steps.

    AP_l = Σ_k (recall_k − recall_{k−1}) · precision_k,   k over the distinct scores, high to low

and the unweighted mean over the labels that some row has (scikit-learn's average_precision_score).
A label without weight in a resample is left out of that resample's mean; where no label is left
the value is 0. Many labels a row, in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from regraft.types import FloatArray

title = "mean average precision"
higher_is_better = True
proportion = False
per_row = False
bounded = True


def value(truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
    """truth [N, C] zeros and ones, scores [N, C], weights [R, N] → [R]."""
    total = np.zeros(len(weights))
    count = np.zeros(len(weights))
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked = scores[order, label]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # last of each tie
        own = weights[:, order]  # [R, N]
        above = np.cumsum(own, axis=1)[:, ends]  # weight at or above each distinct score
        hits = np.cumsum(own * truth[order, label], axis=1)[:, ends]
        precision = hits / np.where(above > 0, above, 1.0)
        support = hits[:, -1]  # [R]
        steps = np.diff(hits, axis=1, prepend=0.0)
        area = np.einsum("rk,rk->r", steps, precision)
        total += area / np.where(support > 0, support, 1.0)
        count += support > 0
    result: FloatArray = total / np.maximum(count, 1)
    return result
