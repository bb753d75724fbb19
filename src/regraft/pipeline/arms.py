"""Arms: one fitted model a seed, for the fit and for the scratch control."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from .. import plugins
from ..compute import distributed
from ..errors import DivergedError, UsageError
from ..evidence.frontier import choose, evaluate_points, load_point
from ..evidence.retention import retention_of
from ..freezing import Adapting, Freezing
from ..io.log import LOGGER
from ..model.sharded import offloaded, sharded
from ..model.trainable import set_trainable
from ..model.weights import restore, snapshot
from ..runs import records
from ..runs.checkpoint_records import ArmRecord
from ..runs.estimates import Point, Retained
from ..training.checkpoints import CheckpointManager
from ..training.loop import fine_tune
from ..training.records import NONE, Epoch, FitData, FitResult, Monitor, Progress, Saved
from ..training.state import part
from .feature_reuse import FitPhases
from .job import Figures, Job, Start, figures_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.batches import Batches
    from ..evidence.scoring import Predictions
    from ..model.types import Source, Target
    from ..training.settings import Settings
    from .target_data import Memo, TargetData


T = TypeVar("T")

R = TypeVar("R")


class ProgressDisplay(Protocol):
    """A display of how far fits are: ``(rows, label)`` gives what goes around a fit's batches."""

    def __call__(self, rows: int, label: str) -> Callable[[Batches], Batches]: ...

    def step(self, label: str, at: Progress, steps: int) -> None: ...


@dataclass(frozen=True)
class Arm:
    """A fitted model at the chosen point of its frontier, and how it came about."""

    target: Target
    fit: FitResult
    alpha: float = 1.0
    points: list[Point] = field(default_factory=list)  # on val; empty where none was evaluated
    end: dict[str, Tensor] = field(default_factory=dict)  # θ(1); empty where the target is that


@dataclass(frozen=True)
class PointChoice:
    """The way to the point between the start (α = 0) and the fit (α = 1)."""

    alpha: float | None = None  # None: the best on val
    source: Predictions | None = None  # of the source itself on its select rows: points get their retention
    points: Sequence[Point] = ()  # of cross-validation, where there is no val


@dataclass(frozen=True)
class ArmMonitor(Monitor):
    """The monitor of one arm's fit."""

    label: str
    accumulate: int  # micro-batches a step
    on_epoch: Callable[[Epoch], None]
    measure_source: Callable[[], Figures]
    track: ProgressDisplay | None
    level: int

    def epoch(self, epoch: Epoch) -> None:
        """Hand the epoch on."""
        self.on_epoch(epoch)

    def step(self, progress: Progress) -> None:
        """Show the progress."""
        if self.track is not None:
            self.track.step(self.label, progress, ceil(progress.batches / self.accumulate))

    def source_metrics(self) -> Figures:
        """Measure the source task, if the plan asks for it after every epoch."""
        return self.measure_source()

    def note(self, line: str) -> None:
        """Report a line."""
        LOGGER.log(self.level, "%s", line)


@dataclass(frozen=True)
class ArmFitter:
    """Fits the arms of a job. What an earlier process finished is loaded from its checkpoints."""

    job: Job
    checkpoints: CheckpointManager | None = None
    track: ProgressDisplay | None = None
    on_epoch: Callable[[int, Epoch], None] = lambda seed, epoch: None
    level: int = logging.DEBUG  # of the lines that a fit reports

    # ---------------------------------------------------------------- one arm

    def fit(
        self,
        source: Source,
        settings: Settings,
        seed: int,
        *,
        label: str,
        start: Start | None = None,
        choice: PointChoice | None = None,
    ) -> Arm:
        """Graft and fit with one seed, from ``start`` where one is given, and go to the chosen point of the
        frontier. Without a start that is α = 1. ``label`` names the arm's checkpoints."""
        job, choice = self.job, choice or PointChoice()
        target = job.initial_target(source, seed, start.probe if start else None)
        begin = snapshot(target)
        if start is not None:
            start.head.write_to(target.model.get_submodule("head"))
        each_epoch = job.plan.source_data.each_epoch
        measure_source = partial(self.source_figures, target, choice.source) if each_epoch else dict
        result = self.fit_rows(target, settings, seed, label=label, measure_source=measure_source)
        if start is None:
            return Arm(target, result)
        if result.best_epoch == 0:
            restore(target, begin)  # training may have started from another head
            return Arm(target, result, alpha=0.0)
        return self.go_to_point(target, begin, result, choice)

    def go_to_point(self, target: Target, begin: dict[str, Tensor], result: FitResult, choice: PointChoice) -> Arm:
        """Load the chosen point of the frontier from ``begin`` to the target's weights, and return the arm."""
        job = self.job
        end, points = snapshot(target), list[Point]()
        load = point_loader(job.data, target, begin, end)
        retention = partial(self.retention, target, choice.source)
        if choice.alpha is None and job.data.splits.val:
            points = evaluate_points(load, partial(self.val_figures, target), retention)
        elif choice.alpha is None and choice.points and choice.source is not None:
            known = iter(choice.points)
            points = evaluate_points(load, lambda: next(known).figures, retention)
        alpha = choose(points, job.spec.metric, job.plan.fit.retain).alpha if points else choice.alpha
        alpha = 1.0 if alpha is None else alpha
        load(alpha)
        return Arm(target, result, alpha, points, {} if alpha == 1 else end)

    def val_figures(self, target: Target) -> Figures:
        """Return the primary metric and the loss of a target on val."""
        return figures_of([self.job.outputs.logits(target, "val")], self.job.spec.task, self.job.spec.metric)

    def retention(self, target: Target, before: Predictions | None) -> Retained | None:
        """Return what the target's backbone keeps of the source task on the select rows, as it is now."""
        job = self.job
        if before is None or job.source_data is None:
            return None
        backbone = target.model.get_submodule("backbone")
        after = before if job.outputs.unchanged(target) else job.source_data.scored(backbone, "select")
        return retention_of(job.source_data.metric, before, after)

    def source_figures(self, target: Target, before: Predictions | None) -> Figures:
        """Return the source metric on the select rows, and the share that is kept where that is defined."""
        retention = self.retention(target, before)
        if retention is None or self.job.source_data is None:
            return {}
        kept = {} if retention.ratio is None else {"kept": retention.ratio}
        return {self.job.source_data.task.primary: retention.after} | kept

    def fit_rows(
        self,
        target: Target,
        settings: Settings,
        seed: int,
        *,
        label: str = "fit",
        rows: Sequence[int] | None = None,
        measure_source: Callable[[], Figures] = dict,
    ) -> FitResult:
        """Fine-tune the target in place on train, or on some of its rows, as the plan says; from where an
        earlier process has left it under this label."""
        job, data = self.job, self.job.data
        scratch = target.nothing_kept
        source_rows = job.source_data and replace(job.source_data, seed=seed)
        penalties = {
            name: r.prepare(target, source_rows, data.train_rows(rows))
            for name, r in job.plan.plugins.regularizers.items()
            if settings.penalties and not (scratch and r.uses_source)  # there is nothing to hold on to
        }
        freezing = plugins.options_class("freezing", "everything")() if scratch else job.spec.freezing
        spec = replace(job.spec, settings=settings, freezing=freezing, penalties=penalties, seed=seed)
        train = data.batches("train", rows, seed=seed, train=True)
        val = data.batches("val") if data.splits.val and rows is None else None
        wrap = self.track(settings.epochs * len(train), label) if self.track else lambda batches: batches
        on_epoch = partial(self.on_epoch, seed)
        monitor = ArmMonitor(label, settings.accumulate, on_epoch, measure_source, self.track, self.level)
        manager = self.checkpoints
        alone = offloaded(job.source.backbone, job.plan.run.shard)  # θs has no place beside the shards
        with alone, self.fitted_as(target, freezing, seed) as fitted, manager.fitting() if manager else nullcontext():
            store = job.outputs.at_level(self.level).store
            phases = FitPhases(job, fitted, FitData(train, val), spec, store, wrap)
            checkpoints = manager.of(label) if manager else NONE
            return fine_tune(
                fitted, FitData(train, val, phases), spec, job.compute, monitor=monitor, checkpoints=checkpoints
            )

    def fitted_as(self, target: Target, freezing: Freezing, seed: int) -> AbstractContextManager[Target]:
        """Return what is fitted in place of the target: a sharded copy, if weights are to be sharded."""
        if self.job.plan.run.shard and distributed.world_size() > 1:
            return sharded(target, self.job.compute.device)
        return adapted(freezing, target, seed)

    # ---------------------------------------------------------------- many arms

    def fit_each(self, items: Sequence[T], fit: Callable[[T], Arm], initial_target: Callable[[T], Target]) -> list[Arm]:
        """Return ``fit(item)`` of every item. With ``run.spread = "arms"`` one rank fits an item, and the
        others put its weights onto ``initial_target(item)``."""
        job = self.job
        if job.plan.run.spread == "rows" or distributed.world_size() == 1:
            return [fit(item) for item in items]

        packed = map_over_ranks(job.memo, items, lambda item: pack(fit(item)))
        return [self.unpack(initial_target(item), saved) for item, saved in zip(items, packed, strict=True)]

    def load_or_fit(self, name: str, source: Source, seed: int, fit: Callable[[], Arm]) -> Arm:
        """Return the arm checkpointed under ``name``, or fit it and checkpoint it."""
        if self.checkpoints is None:
            return fit()
        saved = self.checkpoints.done(name)
        if saved is not None:
            return self.unpack(self.job.initial_target(source, seed), saved)
        arm = fit()
        packed = pack(arm)
        self.checkpoints.finish(name, packed.record, packed.tensors)
        return arm

    def unpack(self, target: Target, saved: Saved) -> Arm:
        """Return an arm from its record and tensors, in the target. Raises UsageError for a damaged checkpoint."""
        try:
            record = records.checked(ArmRecord, saved.record)
        except ValueError as error:
            raise UsageError(f"the checkpoint of an arm is damaged ({error}): remove it and resume again") from error
        self.job.compute.move_model(target.model)
        restore(target, part(saved.tensors, "model"))
        set_trainable(target, frozenset(), self.job.spec.settings.batch_norm)
        points = [
            Point(p.alpha, p.figures, Retained(**p.source.model_dump()) if p.source else None) for p in record.points
        ]
        return Arm(target, FitResult(**record.fit.model_dump()), record.alpha, points, part(saved.tensors, "end"))


# ---------------------------------------------------------------- parts


def map_over_ranks(memo: Memo, items: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """Return ``compute(item)`` of every item; each rank computes some of them alone.

    A fit that diverges on one rank is raised on all of them, after each has reported its own: they go on,
    or end, together.
    """

    def computed(item: T) -> tuple[R | None, DivergedError | None]:
        try:
            return compute(item), None
        except DivergedError as error:
            return None, error

    with memo.local_scope():
        results = distributed.map_over_ranks(items, computed)
    for _, error in results:
        if error is not None:
            raise error
    return [cast(R, value) for value, _ in results]


def pack(arm: Arm) -> Saved:
    """Return an arm without its target, for a checkpoint or for another rank."""
    tensors = {f"model/{n}": t for n, t in snapshot(arm.target).items()}
    tensors |= {f"end/{n}": t for n, t in arm.end.items()}
    points = [asdict(point) for point in arm.points]
    return Saved({"fit": asdict(arm.fit), "alpha": arm.alpha, "points": points}, tensors)


def adapted(freezing: Freezing, target: Target, seed: int) -> AbstractContextManager[Target]:
    """Return the target itself, unless the strategy fits something in its place."""
    if isinstance(freezing, Adapting):
        return freezing.adapted(target, seed)
    return nullcontext(target)


def point_loader(
    data: TargetData,
    target: Target,
    start: dict[str, Tensor],
    end: dict[str, Tensor],
    rows: Sequence[int] | None = None,
) -> Callable[[float], None]:
    """Return a function that loads θ(α) into the target's model."""
    train = partial(data.batches, "train", rows)
    return lambda alpha: load_point(target, start, end, alpha, train, data.compute)
