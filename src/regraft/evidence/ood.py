"""Is a row unlike the training data? The distance of its features to the nearest class of train.

    d(x)² = min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c),   f = backbone(x) ÷ ‖backbone(x)‖,
    Σ = U diag(s) Uᵀ + r (I − U Uᵀ)

μ_c are the means of train by class (one mean for numbers and for several labels), Σ the covariance
within classes: its leading directions U with their variances s, and one variance r for all others,
since a small data set has fewer rows than features. Only these sums are kept, not features of rows.

Distance: Lee et al. 2018, 1807.03888, section 2.1; features of length one: Mueller and Hein 2025,
2505.18032; Σ in this form: Tipping and Bishop 1999, appendix A.

The warning is given above a threshold taken from val, whose rows trained no weight: the k-th smallest
of its n distances, k = ⌈(n + 1)(1 − level)⌉. On new rows like those of val it is given falsely at a rate
of at most ``level`` on average over val sets, and for this one the rate is Beta(n + 1 − k, k): Vovk
2012, 1209.2673, proposition 2a. Choosing epochs and α on val makes its distances a little too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SourceError
from ..io import guarded
from ..io.hashing import file_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray


FILE = "novelty.safetensors"  # beside model.safetensors

SCHEMA = 1

LEVEL = 0.05  # false warnings, at most, on average

ROWS = 1_000  # of train and of val, at most: a pass of features each

DIRECTIONS = 16  # at most

FEWEST = math.ceil(1 / LEVEL) - 1  # rows of val below which no threshold has that level


@dataclass(frozen=True)
class Novelty:
    """What is needed to tell how far a row is from the training data."""

    means: FloatArray  # [classes, D]
    directions: FloatArray  # [R, D], orthonormal
    variances: FloatArray  # [R], of the directions
    rest: float  # variance of every other direction
    threshold: float  # a distance; above it a row is unlike the training data
    rows: int  # of train, behind means and variances
    held_out: int  # of val, behind the threshold

    def distances(self, features: NDArray[Any]) -> FloatArray:
        """Features [N, D] → distances [N], of the root mean square of one where rows are typical."""
        from scipy.spatial.distance import cdist

        squares = cdist(self.white(unit(features)), self.white(self.means), "sqeuclidean")
        return np.asarray(np.sqrt(squares.min(1) / self.means.shape[1]))

    def white(self, rows: FloatArray) -> FloatArray:
        """Rows [N, D] where the covariance is the identity: [N, R + D]."""
        along = rows @ self.directions.T  # [N, R]
        others = rows - along @ self.directions
        return np.hstack([along / np.sqrt(self.variances), others / math.sqrt(self.rest)])

    @property
    def expected(self) -> float:
        """The expected rate of false warnings on rows like those of val."""
        return (self.held_out + 1 - place(self.held_out)) / (self.held_out + 1)

    def false_alarms(self) -> tuple[float, float]:
        """The 95 % interval of that rate."""
        from scipy.stats import beta

        k = place(self.held_out)
        law = beta(self.held_out + 1 - k, k)
        return float(law.ppf(0.025)), float(law.ppf(0.975))


def unit(features: NDArray[Any]) -> FloatArray:
    """Rows [N, D] scaled to length one; a row of zeros stays."""
    wide = np.asarray(features, np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(length > 0, length, 1.0))


def place(held_out: int) -> int:
    """k: which of the sorted distances the threshold is."""
    return math.ceil(round((held_out + 1) * (1 - LEVEL), 9))


def fit_novelty(train: NDArray[Any], classes: Sequence[int], held_out: NDArray[Any]) -> Novelty | None:
    """From features of train [N, D] with their class numbers [N] and of held-out rows [M, D].

    None where there are too few held-out rows for a threshold, or features without any spread.
    """
    if len(held_out) < FEWEST or len(train) < 2:
        return None
    rows, numbers = unit(train), np.unique(np.asarray(classes), return_inverse=True)[1]
    by_class = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    means = np.stack([rows[own].mean(0) for own in by_class])
    within = rows - means[numbers]  # [N, D]
    free = max(1, len(rows) - len(means))  # degrees of freedom
    _, sizes, directions = np.linalg.svd(within, full_matrices=False)
    variances = sizes**2 / free
    # Half of the degrees of freedom at most: the variance of the others is a mean, not a remainder.
    keep = min(DIRECTIONS, free // 2, int((variances > 1e-9 * variances[0]).sum()))
    total = float((within**2).sum()) / free
    rest = (total - float(variances[:keep].sum())) / max(1, rows.shape[1] - keep)
    if not total > 0:
        return None
    rest = max(rest, 1e-6 * total / rows.shape[1])
    found = Novelty(
        as_stored(means),
        as_stored(directions[:keep]),
        as_stored(variances[:keep]),
        rest,
        threshold=math.inf,
        rows=len(rows),
        held_out=len(held_out),
    )
    far = np.sort(found.distances(held_out))
    return replace(found, threshold=float(far[place(len(far)) - 1]))


def as_stored(values: FloatArray) -> FloatArray:
    """Rounded as the file has it, so that the threshold is of the same numbers."""
    return np.asarray(values.astype(np.float32).astype(np.float64))


def tensors_of(n: Novelty) -> dict[str, Any]:
    """As safetensors stores it: float32, one value where one number is."""
    import torch

    numbers = {"rest": n.rest, "threshold": n.threshold, "rows": n.rows, "held_out": n.held_out}
    arrays = {"means": n.means, "directions": n.directions, "variances": n.variances}
    found = {k: torch.from_numpy(np.ascontiguousarray(v)).float() for k, v in arrays.items()}
    return found | {k: torch.tensor(float(v), dtype=torch.float64) for k, v in numbers.items()}


def digest(model: Path) -> str:
    """sha256 of the weights in a run's ``model`` folder."""
    return file_digest(model / "model.safetensors")


def read_novelty(model: Path) -> Novelty | None:
    """That of a run's ``model`` folder; None where it has none, or one of other weights than those beside
    it. Raises SourceError where it is damaged or of another version."""
    from safetensors import SafetensorError, safe_open

    path = model / FILE
    try:
        guarded.check_folder(model.parent, model.name)
    except guarded.NotReadError as error:
        raise SourceError(str(error)) from error
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    if about.get("schema") != str(SCHEMA):
        raise SourceError(f"{path}: made by another version of regraft (schema {SCHEMA} expected)")
    if about.get("weights") != digest(model):
        return None
    try:
        found = Novelty(
            *(values[k].astype(np.float64) for k in ("means", "directions", "variances")),
            *(float(values[k]) for k in ("rest", "threshold")),
            *(int(values[k]) for k in ("rows", "held_out")),
        )
        found.distances(found.means[:1])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    return found
