"""Cross-validation over train, which takes val's place where there are too few rows for one.

The folds' fits score every row of train by a model that did not see it. The average of their weights can be the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.columns import ids_of, some_of
from ..errors import UsageError
from ..evidence.frontier import ALPHAS
from ..evidence.linear_probe import Fold
from ..io.log import LOGGER
from ..model.forward import Outputs, joined
from ..model.trainable import set_trainable
from ..model.weights import restore, snapshot
from ..runs import records
from ..runs.checkpoint_records import FoldRecord
from ..runs.estimates import Point
from ..training.records import FitResult, Saved
from ..training.state import part
from .arms import Arm, ArmFitter, PointChoice, map_over_ranks, point_loader
from .job import Start, figures_of, fit_start

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.types import Source
    from ..training.settings import Settings


MAX_KEPT_BYTES = 2_000_000_000  # of all folds' weights, in memory and in checkpoints


@dataclass(frozen=True)
class FoldFit:
    """The fit of one fold."""

    logits: dict[float, Outputs]  # α → logits of the rows that it did not see
    result: FitResult
    end: dict[str, Tensor] = field(default_factory=dict)  # θ(1); empty where it is not kept


@dataclass(frozen=True)
class FoldAverage:
    """The mean of the weights of all folds' fits. Together they have seen all rows."""

    end: dict[str, Tensor]
    result: FitResult  # of the first fold, with the steps of all


@dataclass(frozen=True)
class CrossValidation:
    """Cross-validation over train: every row is scored by models that never saw it."""

    points: list[Point]
    folds: int
    rows: dict[float, Outputs]  # α → logits of all rows, in the order of train
    average: FoldAverage | None = None
    ends: list[dict[str, Tensor]] = field(default_factory=list)  # θ(1) of each fold; empty where they are not kept


@dataclass(frozen=True)
class FoldFitter:
    """Fits the folds of a job as an :class:`ArmFitter` fits its arms."""

    arms: ArmFitter

    def cross_validate(
        self,
        source: Source,
        settings: Settings,
        features: Callable[[], Outputs] | None,
        label: str = "fold",
        on_fold: Callable[[int, list[Point]], None] | None = None,
        *,
        keep: bool = False,
    ) -> CrossValidation:
        """Fit on each fold's rows and score its others: at every α from the probe on ``features``, or without
        them at α = 1 alone.

        The probe of a fold has its λ chosen within the fold's own training rows. ``on_fold`` takes the number of a
        finished fold, from 1, and the points over the folds so far. ``keep`` keeps the fitted weights of each fold
        where they are small enough.
        """
        data, folds = self.arms.job.data, self.arms.job.data.folds()
        numbers, by_arms = range(len(folds)), self.arms.job.plan.run.spread == "arms"
        averaged = features is not None and self.arms.job.plan.fit.after_folds == "average"
        keep = averaged or (keep and self.may_keep(len(folds)))

        def points_of(fits: Sequence[FoldFit]) -> list[Point]:
            alphas = sorted(fits[0].logits)
            return [Point(a, figures_of([f.logits[a] for f in fits], data.task, data.metric)) for a in alphas]

        def fit(k: int) -> FoldFit:
            return self.fit_or_load_fold(source, settings, features, (k, label), keep=keep, shown=averaged)

        fits = list[FoldFit]()
        for found in map_over_ranks(data.memo, numbers, fit) if by_arms else map(fit, numbers):
            fits.append(found)
            if on_fold is not None:
                on_fold(len(fits), points_of(fits))
        together = logits_of_all(fits, folds)
        points = [Point(alpha, figures_of([rows], data.task, data.metric)) for alpha, rows in together.items()]
        ends = [f.end for f in fits if f.end]
        kept = ends if len(ends) == len(folds) else []
        return CrossValidation(points, len(folds), together, average_of(fits) if averaged else None, kept)

    def may_keep(self, folds: int) -> bool:
        """Return whether the weights of so many fits may be kept: they are not sharded, and few bytes."""
        job = self.arms.job
        size = sum(t.numel() * t.element_size() for t in job.target.model.state_dict().values())
        return not job.plan.run.shard and folds * size <= MAX_KEPT_BYTES

    def average(self, source: Source, settings: Settings, features: Callable[[], Outputs], seed: int) -> FoldAverage:
        """Return the average of the folds' fits for a later seed; cross-validation has that of the first."""
        numbers = range(len(self.arms.job.data.folds()))
        where = f"seed {seed} fold"
        return average_of(
            [self.fit_or_load_fold(source, settings, features, (k, where), keep=True, seed=seed) for k in numbers]
        )

    def fit_or_load_fold(
        self,
        source: Source,
        settings: Settings,
        features: Callable[[], Outputs] | None,
        place: tuple[int, str],
        *,
        keep: bool,
        shown: bool = True,
        seed: int | None = None,
    ) -> FoldFit:
        """Return the fit of a fold, from its checkpoint if there is one.

        ``place`` is the fold's number, and the prefix of its checkpoint's name. ``keep`` keeps the fitted weights.
        ``shown`` reports the fold, and the epochs of the first. With ``seed`` the fit takes that seed, and scores no
        row.
        """
        data, (k, label) = self.arms.job.data, place
        (rows, others), name = data.folds()[k], f"{label} {k}"
        saved = self.arms.checkpoints.done(name) if self.arms.checkpoints else None
        if saved is not None:
            ids = tuple(ids_of(some_of(data.splits.train, others)))
            targets = data.targets["train"][others]
            logits = {float(a): Outputs(ids, v, targets) for a, v in part(saved.tensors, "logits").items()}
            return FoldFit(logits, fold_result(saved), part(saved.tensors, "end"))
        start = None if features is None else fit_start({"train": features()}, data, self.arms.job.plan, rows)
        quiet = replace(self.arms, track=None, on_epoch=lambda seed, epoch: None, level=logging.DEBUG)
        log = self if shown and k == 0 else FoldFitter(quiet)  # its epochs stand for the model's
        if shown:
            LOGGER.info("%s %d of %d", label, k + 1, len(data.folds()))
        found = log.fit_fold(source, settings, start, (rows, others), name, seed)
        found = found if keep else replace(found, end={})
        if self.arms.checkpoints:
            tensors = {f"logits/{alpha!r}": o.values for alpha, o in found.logits.items()}
            tensors |= {f"end/{n}": t for n, t in found.end.items()}
            self.arms.checkpoints.finish(name, {"fit": asdict(found.result)}, tensors)
        return found

    def fit_fold(
        self, source: Source, settings: Settings, start: Start | None, fold: Fold, name: str, seed: int | None = None
    ) -> FoldFit:
        """Fit on a fold's training rows, and score its other rows at each α. With ``seed`` it scores none."""
        job, (rows, others) = self.arms.job, fold
        scored, seed = seed is None, job.seeds[0] if seed is None else seed
        target = job.initial_target(source, seed, start.probe if start else None)
        begin = snapshot(target)
        if start is not None:
            start.head.write_to(target.model.get_submodule("head"))
        result = self.arms.fit_rows(target, settings, seed, rows=rows, label=name)
        end = snapshot(target)
        load = point_loader(job.data, target, begin, end, rows)
        logits = {}
        for alpha in (ALPHAS if start else (1.0,)) if scored else ():
            load(alpha)
            logits[alpha] = job.outputs.logits(target, "train", others)
        return FoldFit(logits, result, end)

    def of_average(self, source: Source, seed: int, start: Start, choice: PointChoice, average: FoldAverage) -> Arm:
        """Graft, and go to the chosen point between the probe and the average of the folds' fits."""
        target = self.arms.job.initial_target(source, seed, start.probe)
        begin = snapshot(target)
        restore(target, average.end)
        set_trainable(target, frozenset(), self.arms.job.spec.settings.batch_norm)
        return self.arms.go_to_point(target, begin, average.result, choice)


def logits_of_all(fits: Sequence[FoldFit], folds: Sequence[Fold]) -> dict[float, Outputs]:
    """Return α → logits of the rows of all folds, in the order of the numbers that the folds give them."""
    order = np.argsort([i for _, others in folds for i in others]).tolist()
    return {alpha: joined([f.logits[alpha] for f in fits]).take(order) for alpha in sorted(fits[0].logits)}


def average_of(fits: Sequence[FoldFit]) -> FoldAverage:
    """Return the mean of the folds' weights. Tensors of whole numbers (counters) come from the last fold."""
    ends = [f.end for f in fits]
    end = {
        n: torch.stack([e[n] for e in ends]).mean(0) if t.is_floating_point() else t.clone()
        for n, t in ends[-1].items()
    }
    first = fits[0].result
    stopped = f"the average of {len(fits)} folds' weights"
    return FoldAverage(end, replace(first, steps=sum(f.result.steps for f in fits), stopped=stopped))


def fold_result(saved: Saved) -> FitResult:
    """Return the result of a fold's fit. Raises UsageError for a damaged checkpoint."""
    try:
        return FitResult(**records.checked(FoldRecord, saved.record).fit.model_dump())
    except ValueError as error:
        raise UsageError(f"the checkpoint of a fold is damaged ({error}): remove it and resume again") from error
