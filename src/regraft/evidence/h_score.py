"""H-score: how well features separate classes, without a fit; it only prunes long lists of sources.

    H = tr(Σ_f⁻¹ Σ_z),   Σ_f the covariance of features f, Σ_z that of their class means E[f | y]

Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer Learning". With as many
features as rows Σ_f is singular or nearly so. Ibrahim et al. 2022, 2110.06893, section 4, shrink it by Ledoit and
Wolf 2004, and scale the class means by the same factor:

    H_δ = (1 − δ) · tr(Σ_δ⁻¹ Σ_z),   Σ_δ = (1 − δ) Σ_f + δ · tr(Σ_f)/D · I
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


def h_score(features: FloatArray, strata: Sequence[str]) -> float:
    """Return the shrunk H-score of features [N, D]; more is better, and it is at most the number of classes less 1.

    ``strata`` [N] are class names, or bins of a number.
    """
    from sklearn.covariance import LedoitWolf

    x = np.asarray(features, np.float64)
    x = x - x.mean(0)
    fitted = LedoitWolf(assume_centered=True).fit(x)
    _, number, counts = np.unique(list(strata), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, number, x)
    means = sums / counts[:, None]  # [C, D]
    solved = np.linalg.lstsq(fitted.covariance_, means.T, rcond=None)[0]  # [D, C]
    separated = float((counts / len(x)) @ np.einsum("cd,dc->c", means, solved))
    return (1 - float(fitted.shrinkage_)) * separated
