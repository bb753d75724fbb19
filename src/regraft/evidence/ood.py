"""Out-of-distribution score: the distance of a row's features to the nearest class of train.

    d(x)² = min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c),   f = backbone(x) ÷ ‖backbone(x)‖,
    Σ = U diag(s) Uᵀ + r (I − U Uᵀ)

μ_c are the class means of train; regression and multilabel tasks have one mean. Σ is the covariance within
classes: leading directions U with variances s, and one variance r for all other directions. A small data
set has fewer rows than features, so it cannot give a variance for each. The file holds these sums only,
no features of rows.

Distance: Lee et al. 2018, 1807.03888, section 2.1; features of length one: Mueller and Hein 2025,
2505.18032; Σ in this form: Tipping and Bishop 1999, appendix A.

A row above the threshold gets a warning. The threshold is the k-th smallest of the n distances of val,
k = ⌈(n + 1)(1 − level)⌉, because no weight was trained on val. On new rows like those of val, the rate of
false warnings is at most ``level`` on average over val sets. For one val set the rate follows
Beta(n + 1 − k, k): Vovk 2012, 1209.2673, proposition 2a. Val also chose epochs and α, so its distances
are slightly too small.

Without val the distances are those of rows of train, each by the model of the fold that did not see it. The rate
then is about ``level``, and at most twice that: Barber et al. 2021, 1905.02928, theorem 4. Beta is the law of a val
set, so the interval is an approximation.
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

FALSE_WARNING_RATE = 0.05  # the highest expected share of rows like val that get a warning

MAX_ROWS = 1_000  # of train and of val; each row costs a forward pass, without val one a fold

MAX_DIRECTIONS = 16  # of the covariance

MIN_HELD_OUT_ROWS = math.ceil(1 / FALSE_WARNING_RATE) - 1  # with fewer no threshold has that rate


@dataclass(frozen=True)
class Novelty:
    """Class means, covariance and threshold: all that a distance from the training data needs."""

    means: FloatArray  # [classes, D]
    directions: FloatArray  # [R, D], orthonormal
    variances: FloatArray  # [R], of the directions
    rest: float  # variance of every other direction
    threshold: float  # a distance; above it a row is unlike the training data
    rows: int  # of train, behind means and variances
    held_out: int  # rows of val, or of all folds, behind the threshold

    def distances(self, features: NDArray[Any]) -> FloatArray:
        """Return distances [N] of features [N, D]. Typical rows have a root mean square of one."""
        from scipy.spatial.distance import cdist

        squares = cdist(self.white(scale_to_unit(features)), self.white(self.means), "sqeuclidean")
        return np.asarray(np.sqrt(squares.min(1) / self.means.shape[1]))

    def white(self, rows: FloatArray) -> FloatArray:
        """Return rows [N, D] as [N, R + D], whitened: their covariance becomes the identity."""
        along = rows @ self.directions.T  # [N, R]
        others = rows - along @ self.directions
        return np.hstack([along / np.sqrt(self.variances), others / math.sqrt(self.rest)])

    @property
    def expected(self) -> float:
        """Return the expected rate of false warnings on rows like those of val."""
        return (self.held_out + 1 - threshold_rank(self.held_out)) / (self.held_out + 1)

    def false_alarms(self) -> tuple[float, float]:
        """Return the 95 % interval of the rate of false warnings."""
        from scipy.stats import beta

        k = threshold_rank(self.held_out)
        law = beta(self.held_out + 1 - k, k)
        return float(law.ppf(0.025)), float(law.ppf(0.975))


def scale_to_unit(features: NDArray[Any]) -> FloatArray:
    """Scale rows [N, D] to length one. A row of zeros stays."""
    wide = np.asarray(features, np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(length > 0, length, 1.0))


def threshold_rank(held_out: int) -> int:
    """Return k: the threshold is the k-th smallest distance of the held-out rows."""
    return math.ceil(round((held_out + 1) * (1 - FALSE_WARNING_RATE), 9))


def fit_novelty(train: NDArray[Any], classes: Sequence[int], held_out: NDArray[Any]) -> Novelty | None:
    """Fit class means, covariance and threshold.

    Takes features of train [N, D] with class numbers [N], and features of held-out rows [M, D]. Returns None where the
    held-out rows are too few for a threshold, or where features do not vary.
    """
    novelty = fit_distance(train, classes)
    return None if novelty is None else with_threshold(novelty, novelty.distances(held_out))


def fit_distance(train: NDArray[Any], classes: Sequence[int]) -> Novelty | None:
    """Fit class means and covariance to features of train [N, D] with class numbers [N]. No row is above the threshold.

    Returns None where features do not vary.
    """
    if len(train) < 2:
        return None
    rows, numbers = scale_to_unit(train), np.unique(np.asarray(classes), return_inverse=True)[1]
    by_class = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    means = np.stack([rows[own].mean(0) for own in by_class])
    within = rows - means[numbers]  # [N, D]
    free = max(1, len(rows) - len(means))  # degrees of freedom
    _, sizes, directions = np.linalg.svd(within, full_matrices=False)
    variances = sizes**2 / free
    # Use half of the degrees of freedom at most, or too few remain to estimate the other variances.
    keep = min(MAX_DIRECTIONS, free // 2, int((variances > 1e-9 * variances[0]).sum()))
    total = float((within**2).sum()) / free
    rest = (total - float(variances[:keep].sum())) / max(1, rows.shape[1] - keep)
    if not total > 0:
        return None
    rest = max(rest, 1e-6 * total / rows.shape[1])
    return Novelty(
        round_to_float32(means),
        round_to_float32(directions[:keep]),
        round_to_float32(variances[:keep]),
        rest,
        threshold=math.inf,
        rows=len(rows),
        held_out=0,
    )


def with_threshold(novelty: Novelty, distances: FloatArray) -> Novelty | None:
    """Set the threshold by the distances of held-out rows [M]. Returns None where these are too few."""
    if len(distances) < MIN_HELD_OUT_ROWS:
        return None
    ordered = np.sort(distances)
    return replace(novelty, threshold=float(ordered[threshold_rank(len(ordered)) - 1]), held_out=len(ordered))


def round_to_float32(values: FloatArray) -> FloatArray:
    """Round values as the file does, so that the threshold fits the stored numbers."""
    return np.asarray(values.astype(np.float32).astype(np.float64))


def to_tensors(n: Novelty) -> dict[str, Any]:
    """Return the tensors for safetensors: arrays in float32, single numbers in float64."""
    import torch

    numbers = {"rest": n.rest, "threshold": n.threshold, "rows": n.rows, "held_out": n.held_out}
    arrays = {"means": n.means, "directions": n.directions, "variances": n.variances}
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).float() for k, v in arrays.items()}
    return tensors | {k: torch.tensor(float(v), dtype=torch.float64) for k, v in numbers.items()}


def weights_digest(model: Path) -> str:
    """Return the sha256 of the weights in a run's ``model`` folder."""
    return file_digest(model / "model.safetensors")


def read_novelty(model: Path) -> Novelty | None:
    """Read the distance of a run's ``model`` folder.

    Returns None where the folder has none, or where the file was made for other weights than those beside it. Raises
    SourceError where the file is damaged or of another version.
    """
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
    if about.get("weights") != weights_digest(model):
        return None
    try:
        novelty = Novelty(
            *(values[k].astype(np.float64) for k in ("means", "directions", "variances")),
            *(float(values[k]) for k in ("rest", "threshold")),
            *(int(values[k]) for k in ("rows", "held_out")),
        )
        novelty.distances(novelty.means[:1])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    return novelty
