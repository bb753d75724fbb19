"""What fitting did to the source's knowledge, seen on the target's own inputs: a proxy.

Without source data, forgetting cannot be measured. What can be is how far the fitted backbone has
moved from the source's on inputs that were in no training:

    agreement    share of rows to which the source's own head gives the same class before and after
    divergence   mean over rows of KL(before ‖ after) of that head's probabilities, in nats
    cka          for a source without a head of classes, linear CKA of features (Kornblith, Norouzi,
                 Lee and Hinton 2019, 1905.00414, eq. 1 with a linear kernel): 1 for equal up to
                 rotation and scale

High agreement on target inputs does not prove that the source task is kept: they are other inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .evaluation import resamples
from .intervals import effective_rows, resampled, wilson
from .types import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from .intervals import Groups
    from .types import FloatArray, Source


def proxies(
    source: Source, before: Tensor, after: Tensor, groups: Groups | None = None
) -> dict[str, Any]:
    """``retention`` of result.json, from features [N, D] of the source and of the fitted model."""
    if source.head is None or source.task != "classification":
        return {"kind": "features on target inputs", "cka": linear_cka(before, after)}
    head = source.head.cpu()
    with torch.no_grad():
        p, q = head(before).double().log_softmax(1), head(after).double().log_softmax(1)  # [N, C]
    same = (p.argmax(1) == q.argmax(1)).double().numpy()
    apart = (p.exp() * (p - q)).sum(1).clamp_min(0).numpy()  # [N]
    n, worth = len(same), effective_rows(same, groups)
    share = float(same.mean())
    return {
        "kind": "agreement on target inputs",
        "agreement": Estimate(share, *wilson(share * worth, worth), n),
        "divergence": mean_of(apart, groups),
    }


def mean_of(rows: FloatArray, groups: Groups | None) -> Estimate:
    """A mean over rows [N] with its percentile bootstrap interval."""
    n = len(rows)

    def of(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ rows / weights.sum(1))

    low, high = np.quantile(resampled(of, n, groups=groups, resamples=resamples(n)), [0.025, 0.975])
    return Estimate(float(rows.mean()), float(low), float(high), n)


def linear_cka(a: Tensor, b: Tensor) -> float | None:
    """Of features [N, D] and [N, E] of the same rows, in [0, 1]; None where one does not vary."""
    x, y = (t.double() - t.double().mean(0) for t in (a, b))
    scale = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return float((y.T @ x).square().sum() / scale) if scale > 0 else None
