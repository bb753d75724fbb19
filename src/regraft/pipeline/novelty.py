"""What tells rows that are unlike train, fitted to a run's model, and its file beside the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..data.columns import ids_of
from ..evidence.ood import MAX_ROWS, MIN_HELD_OUT_ROWS, Novelty, fit_distance, fit_novelty, with_threshold
from ..model.weights import snapshot
from ..runs.tensors import save_tensors
from .arms import point_loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray
    from ..model.forward import Outputs
    from ..model.types import Target
    from ..runs.folder import RunFolder
    from .arms import Arm
    from .folds import CrossValidation
    from .job import ModelOutputs
    from .target_data import TargetData


def novelty_of(outputs: ModelOutputs, arm: Arm, cross: CrossValidation, graft: Callable[[], Target]) -> Novelty | None:
    """Return what tells rows that are unlike train; None where too few rows are held out for a threshold.

    The held-out rows are val. Without val they are rows of train, each under the fit of the fold that did not see it.
    ``graft`` gives the target as the fits of folds began with it.
    """
    data = outputs.data
    by_folds = bool(cross.ends) and not data.splits.val
    if len(data.splits.train if by_folds else data.splits.val) < MIN_HELD_OUT_ROWS:
        return None
    chosen = some(data, "train", max(MAX_ROWS, 10 * data.task.outputs))  # of each class a few
    train = outputs.features_of(arm.target, "train", chosen)
    if not by_folds:
        val = outputs.features_of(arm.target, "val", some(data, "val", MAX_ROWS))
        return fit_novelty(train.values.numpy(), classes_of(data, train), val.values.numpy())
    novelty = fit_distance(train.values.numpy(), classes_of(data, train))
    distances = None if novelty is None else distances_by_folds(outputs, graft(), arm.alpha, cross, set(chosen))
    return None if novelty is None or distances is None else with_threshold(novelty, distances)


def distances_by_folds(
    outputs: ModelOutputs, target: Target, alpha: float, cross: CrossValidation, chosen: set[int]
) -> FloatArray | None:
    """Return the distances of the chosen rows of train, each from the other folds' rows, by the fold's own fit at α.

    Returns None where features do not vary, or where the chosen rows are of one fold.
    """
    data, found = outputs.data, list[np.ndarray]()
    start = snapshot(target)  # the folds' heads differ, which no feature sees
    for (rows, others), end in zip(data.folds(), cross.ends, strict=True):
        fitted, left = ([i for i in part if i in chosen] for part in (rows, others))
        if not fitted:
            return None
        if not left:  # a large group takes a fold's place, or most of the rows that are used
            continue
        point_loader(data, target, start, end, rows)(alpha)
        seen, unseen = (outputs.features_of(target, "train", part) for part in (fitted, left))
        own = fit_distance(seen.values.numpy(), classes_of(data, seen))
        if own is None:
            return None
        found.append(own.distances(unseen.values.numpy()))
    return np.concatenate(found)


def some(data: TargetData, split: str, most: int) -> list[int]:
    """Return so many rows of a split, by content: the order of the data does not matter."""
    ids = list(ids_of(data.rows(split)))
    return sorted(sorted(range(len(ids)), key=ids.__getitem__)[:most])


def classes_of(data: TargetData, rows: Outputs) -> list[int]:
    """Return the class number of each row; 0 where the task has no classes."""
    return rows.targets.tolist() if data.task.has_classes else [0] * len(rows.ids)


def save_novelty(folder: RunFolder, novelty: Novelty) -> None:
    """Write ``model/novelty.safetensors``, bound to the weights beside it."""
    from ..evidence.ood import FILE, SCHEMA, to_tensors, weights_digest

    where = folder.path / "model"
    about = {"schema": str(SCHEMA), "weights": weights_digest(where)}
    save_tensors(to_tensors(novelty), where / FILE, about)
