"""Mean average precision over labels: the area under each label's precision–recall steps.

    AP_l = Σ_k (recall_k − recall_{k−1}) · precision_k,   k over the distinct scores, high to low

and the unweighted mean over the labels that some row has (scikit-learn's average_precision_score).
A label without weight in a resample is left out of that resample's mean; where no label is left
the value is 0. Many labels a row, in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._ranks import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


title = "mean average precision"

targets = "labels"

higher_is_better = True

proportion = False

bounded = True


def at_weights(truth: Any, scores: Any) -> Callable[[FloatArray], FloatArray]:
    """Return the metric [R] of these rows as a function of weights [R, N]."""
    n = len(truth)
    of = ((truth[:, label] > 0, scores[:, label]) for label in range(scores.shape[1]))
    ready = list(blocks(((own, s) for own, s in of if own.any()), n))

    def mean_precision(weights: FloatArray) -> FloatArray:
        by_row = np.ascontiguousarray(weights.T)  # [N, R]
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for block in ready:
            w = block.weigh(by_row)
            lengths = np.diff([*w.columns, len(w.positives)])
            upto = np.cumsum(w.positives, axis=0)
            upto -= np.repeat(upto[w.columns] - w.positives[w.columns], lengths, axis=0)
            # weight at or above each score
            hits = np.repeat(w.positive, lengths, axis=0) - upto + w.positives
            above = hits + np.repeat(w.negative, lengths, axis=0) - w.below
            steps = w.positives * hits / np.where(above > 0, above, 1.0)
            area = np.add.reduceat(steps, w.columns, axis=0)  # [K, R]
            total += (area / np.where(w.positive > 0, w.positive, 1.0)).sum(axis=0)
            count += (w.positive > 0).sum(axis=0)
        result: FloatArray = total / np.maximum(count, 1)
        return result

    return mean_precision
