"""Arms: one fitted model a seed, for the fit and for the scratch control; and the folds that take
val's place where there are too few rows for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import numpy as np
import torch

from .. import plugins
from ..compute import distributed
from ..data.columns import ids_of, some_of
from ..errors import DivergedError, UsageError
from ..evidence.frontier import ALPHAS, choose, evaluate_points, load_point
from ..evidence.linear_probe import Probe, fit_probe
from ..evidence.retention import retention_of
from ..freezing import Adapting, Freezing
from ..model.forward import Outputs, joined, outputs
from ..model.grafting import graft
from ..model.sharded import offloaded, sharded
from ..model.trainable import eval_mode, set_trainable
from ..model.types import Source, Target
from ..model.weights import restore, snapshot
from ..runs import records
from ..runs.checkpoint_records import ArmRecord, ProbeRecord
from ..runs.estimates import Point, Retained
from ..training.checkpoints import CheckpointManager
from ..training.loop import fine_tune
from ..training.records import NONE, Epoch, FitData, FitResult, Monitor, Progress, Saved
from ..training.settings import FitSpec, Settings
from ..training.state import part
from . import feature_reuse
from .prepare import Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.batches import Batches
    from ..evidence.scoring import Predictions
    from ..io.streams import Report


T = TypeVar("T")

R = TypeVar("R")

Figures = dict[str, float]  # the primary metric and "loss"


class Track(Protocol):
    """Shows how far fits are: ``(rows, label)`` gives what goes around a fit's batches."""

    def __call__(self, rows: int, label: str) -> Callable[[Batches], Batches]: ...

    def step(self, label: str, at: Progress, steps: int) -> None: ...


@dataclass(frozen=True)
class Arm:
    """A fitted model at the chosen point of its frontier, and how it came about."""

    target: Target
    fit: FitResult
    alpha: float = 1.0
    points: list[Point] = field(default_factory=list)  # on val; empty where none was walked
    end: dict[str, Tensor] = field(default_factory=dict)  # θ(1); empty where the target is that


def fit_arm(
    p: Prepared,
    source: Source,
    chosen: Settings,
    seed: int,
    *,
    start: Probe | None,
    alpha: float | None = None,
    select: Predictions | None = None,
    points: Sequence[Point] = (),
    log: Callable[[Epoch], None] = lambda epoch: None,
    track: Track | None = None,
    label: str = "fit",
    say: Report = lambda line: None,
    keeper: CheckpointManager | None = None,
) -> Arm:
    """Graft and fit with one seed, from a probe's head where one is given, and go to a point of the
    frontier: ``alpha``, or the best on val where it is None. Without a probe that is α = 1.

    ``select``, what the source itself says of its select rows, adds retention to the points and lets
    the plan's floor hold. ``points`` are those of cross-validation, where there is no val. A
    ``keeper`` has what an earlier process left under this ``label``, and saves for a later one.
    """
    target = initial_target(p, source, seed, start)
    origin = snapshot(target)
    watch = partial(watched, p, target, select) if p.plan.source_data.each_epoch else dict
    done = fit_rows(p, target, chosen, seed, log=log, watch=watch, track=track, label=label, say=say, keeper=keeper)
    if start is None or done.best_epoch == 0:
        return Arm(target, done, alpha=1.0 if start is None else 0.0)
    end, walked = snapshot(target), list[Point]()
    go = point_loader(p, target, origin, end)
    if alpha is None and p.splits.val:
        walked = evaluate_points(
            go, lambda: figures_of(p, [logits_of(p, target, "val")]), lambda: retained_at(p, target, select)
        )
    elif alpha is None and points and select is not None:
        judged = iter(points)
        walked = evaluate_points(go, lambda: next(judged).figures, lambda: retained_at(p, target, select))
    if walked:
        alpha = choose(walked, p.metric, p.plan.fit.retain).alpha
    alpha = 1.0 if alpha is None else alpha
    go(alpha)
    return Arm(target, done, alpha, walked, {} if alpha == 1 else end)


def each_arm(p: Prepared, items: Sequence[T], fitted: Callable[[T], Arm], begun: Callable[[T], Target]) -> list[Arm]:
    """``fitted(item)`` of every item. With ``run.spread = "arms"`` each is fitted by one process alone,
    and put by the others onto the target that ``begun(item)`` gives."""
    if p.plan.run.spread == "rows" or distributed.world_size() == 1:
        return [fitted(item) for item in items]

    def sent(item: T) -> tuple[FitResult, float, list[Point], dict[str, Tensor], dict[str, Tensor]]:
        arm = fitted(item)
        return arm.fit, arm.alpha, arm.points, snapshot(arm.target), arm.end

    found = []
    for item, (fit, alpha, points, state, end) in zip(items, map_over_ranks(p, items, sent), strict=True):
        target = begun(item)
        p.compute.move_model(target.model)
        restore(target, state)
        found.append(Arm(target, fit, alpha, points, end))
    return found


def map_over_ranks(p: Prepared, items: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """``processes.spread``. What one process alone came to keep it forgets afterwards: the others would
    wait for it where they compute that together. A fit of one that diverged is raised in all of them,
    once each has told the others of its own: they go on, or end, together."""

    def told(item: T) -> tuple[R | None, DivergedError | None]:
        try:
            return compute(item), None
        except DivergedError as error:
            return None, error

    before = dict(p.kept)
    try:
        found = distributed.map_over_ranks(items, told)
    finally:
        p.kept.clear()
        p.kept.update(before)
    for _, error in found:
        if error is not None:
            raise error
    return [cast(R, value) for value, _ in found]


def load_or_fit(
    keeper: CheckpointManager, name: str, p: Prepared, source: Source, seed: int, fit: Callable[[], Arm]
) -> Arm:
    """The arm that an earlier process left under this name, or else ``fit()``, left for a later one."""
    left = keeper.done(name)
    if left is not None:
        return arm_left(p, source, seed, left)
    arm = fit()
    tensors = {f"model/{n}": t for n, t in snapshot(arm.target).items()}
    tensors |= {f"end/{n}": t for n, t in arm.end.items()}
    points = [asdict(point) for point in arm.points]
    record = {"fit": asdict(arm.fit), "alpha": arm.alpha, "points": points}
    keeper.finish(name, record, tensors)
    return arm


def arm_left(p: Prepared, source: Source, seed: int, left: Saved) -> Arm:
    """An arm from what it left."""
    target, record = initial_target(p, source, seed, None), left.record
    if why := records.problem(ArmRecord, record):
        raise UsageError(f"the checkpoint of an arm is damaged ({why}): remove it and resume again")
    p.compute.move_model(target.model)
    restore(target, part(left.tensors, "model"))
    set_trainable(target, frozenset(), p.settings.batch_norm)
    points = [
        Point(q["alpha"], q["figures"], Retained(**q["source"]) if q["source"] else None) for q in record["points"]
    ]
    return Arm(target, FitResult(**record["fit"]), record["alpha"], points, part(left.tensors, "end"))


def retained_at(p: Prepared, target: Target, select: Predictions | None) -> Retained | None:
    """What the target's backbone keeps of the source task, on the select rows."""
    if select is None or p.source_data is None:
        return None
    backbone = target.model.get_submodule("backbone")
    after = select if backbone_unchanged(p, target) else p.source_data.scored(backbone, "select")
    return retention_of(p.source_data.metric, select, after)


def watched(p: Prepared, target: Target, select: Predictions | None) -> Figures:
    """The source metric on the select rows, and the share that is kept where that is defined."""
    found = retained_at(p, target, select)
    if found is None or p.source_data is None:
        return {}
    kept = {} if found.ratio is None else {"kept": found.ratio}
    return {p.source_data.task.primary: found.after} | kept


def features_of_source(p: Prepared, say: Report = lambda line: None) -> dict[str, Outputs]:
    """What the source's backbone makes of train and val."""
    precision = p.plan.run.feature_precision
    return {split: source_features(p, split, precision, say) for split in ("train", "val") if split in p.targets}


def probe_on(p: Prepared, features: dict[str, Outputs]) -> Probe:
    """The linear probe on these features, its λ chosen on val, or over folds."""
    val = features.get("val")
    folds = () if val is not None else p.folds()
    plan = p.plan.probe
    return fit_probe(features["train"], p.task, plan.strengths, val=val, folds=folds, most=plan.rows)


def probe_once(keeper: CheckpointManager, fit: Callable[[], Probe]) -> Probe:
    """The probe that an earlier process left, or else ``fit()``, left for a later one."""
    left = keeper.done("probe")
    if left is None:
        probe = fit()
        record = {
            "strength": probe.strength,
            "losses": list(probe.losses.items()),
            "chosen_by": probe.chosen_by,
            "rows": probe.rows,
            "of": probe.of,
            "passes": probe.passes,
        }
        keeper.finish("probe", record, {"weight": probe.weight, "bias": probe.bias})
        return probe
    values, r = left.tensors, left.record
    if why := records.problem(ProbeRecord, r):
        raise UsageError(f"the probe's checkpoint is damaged ({why}): remove it and resume again")
    losses = {float(strength): float(loss) for strength, loss in r["losses"]}
    return Probe(
        values["weight"],
        values["bias"],
        r["strength"],
        losses,
        r["chosen_by"],
        r.get("rows", 0),
        r.get("of", 0),
        r.get("passes", 0),
    )


def initial_target(p: Prepared, source: Source, seed: int, start: Probe | None) -> Target:
    """The target before fitting, α = 0. Where weights are to be divided it lies on the CPU."""
    with offloaded(source.backbone, p.plan.run.shard):
        target = graft(source, p.task.outputs, seed=seed)
    if start is not None:
        start.write_to(target.model.get_submodule("head"))
    return target


def fit_rows(
    p: Prepared,
    target: Target,
    chosen: Settings,
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    log: Callable[[Epoch], None] = lambda epoch: None,
    watch: Callable[[], Figures] = dict,
    track: Track | None = None,
    label: str = "fit",
    say: Report = lambda line: None,
    keeper: CheckpointManager | None = None,
) -> FitResult:
    """Fine-tune the target in place on train, or on some of its rows, as the plan says; from where the
    ``keeper`` has it under this ``label``."""
    scratch = target.nothing_kept
    rows_of_source = p.source_data and replace(p.source_data, seed=seed)
    penalties = {
        name: r.prepare(target, rows_of_source, p.train_rows(rows))
        for name, r in p.regularizers.items()
        if chosen.penalties and not (scratch and r.uses_source)  # there is nothing to hold on to
    }
    train = p.batches("train", rows, seed=seed, train=True)
    everything = plugins.options_class("freezing", "everything")()
    strategy = everything if scratch else p.freezing
    val = p.batches("val") if p.splits.val and rows is None else None
    wrap = track(chosen.epochs * len(train), label) if track else lambda batches: batches
    spec = FitSpec(p.task, p.metric, chosen, strategy, penalties, seed)
    monitor = ArmMonitor(chosen, label, log, watch, track, say)
    checkpoints = keeper.of(label) if keeper else NONE
    fitting = keeper.fitting() if keeper else nullcontext()
    alone = offloaded(p.source.backbone, p.plan.run.shard)  # θs has no place beside the shares
    with alone, fitted_as(p, target, strategy, seed) as fitted, fitting:
        phases = feature_reuse.phase_data(p, fitted, train, val, spec, wrap=wrap, say=say)
        data = FitData(train, val, phases)
        return fine_tune(fitted, data, spec, p.compute, monitor=monitor, checkpoints=checkpoints)


@dataclass(frozen=True)
class ArmMonitor(Monitor):
    """The monitor of one arm's fit."""

    settings: Settings
    label: str
    log: Callable[[Epoch], None]
    watch: Callable[[], Figures]
    track: Track | None
    say: Report

    def epoch(self, epoch: Epoch) -> None:
        """Log the epoch."""
        self.log(epoch)

    def step(self, progress: Progress) -> None:
        """Show the progress."""
        if self.track is not None:
            self.track.step(self.label, progress, ceil(progress.batches / self.settings.accumulate))

    def source_metrics(self) -> Figures:
        """Measure the source task, if the plan asks for it after every epoch."""
        return self.watch()

    def note(self, line: str) -> None:
        """Report a line."""
        self.say(line)


def fitted_as(p: Prepared, target: Target, strategy: Freezing, seed: int) -> AbstractContextManager[Target]:
    """What is fitted in place of the target: where weights are divided, a copy that is."""
    if p.plan.run.shard and distributed.world_size() > 1:
        return sharded(target, p.compute.device)
    return adapted(strategy, target, seed)


def adapted(strategy: Freezing, target: Target, seed: int) -> AbstractContextManager[Target]:
    """The target itself, but for a strategy that says otherwise."""
    if isinstance(strategy, Adapting):
        return strategy.adapted(target, seed)
    return nullcontext(target)


def point_loader(
    p: Prepared, target: Target, begin: dict[str, Tensor], end: dict[str, Tensor], rows: Sequence[int] | None = None
) -> Callable[[float], None]:
    """α → θ(α) is in the target's model."""
    train = partial(p.batches, "train", rows)
    return lambda alpha: load_point(target, begin, end, alpha, train, p.compute)


def logits_of(p: Prepared, target: Target, split: str, rows: Sequence[int] | None = None) -> Outputs:
    """Of a split, or of some of its rows. Under a backbone that is still the source's, only the head
    is computed."""
    if not backbone_unchanged(p, target):
        return outputs(target.model, p.batches(split, rows), p.compute)
    features = source_features(p, split)
    features = features if rows is None else features.take(rows)
    head = target.model.get_submodule("head")
    with eval_mode(head), torch.no_grad():
        return replace(features, values=head(features.values.to(p.compute.device)).float().cpu())


def features_of(p: Prepared, target: Target, split: str, rows: Sequence[int]) -> Outputs:
    """What the target's backbone makes of some rows of a split."""
    if backbone_unchanged(p, target):
        return source_features(p, split).take(rows)
    backbone = target.model.get_submodule("backbone")
    return outputs(backbone, p.batches(split, rows), p.compute)


def source_features(p: Prepared, split: str, precision: str = "float32", say: Report = lambda line: None) -> Outputs:
    """What the source's backbone makes of a split, computed once. Only train and val, which later
    fits want too, are kept on disk."""
    key = ("features", split, precision)
    if key not in p.kept:
        if split == "test":
            backbone = p.source.backbone.to(p.compute.device)
            p.kept[key] = outputs(backbone, p.batches(split), p.compute, precision)
        else:
            p.kept[key] = feature_reuse.features(p, split, precision, say)
    found: Outputs = p.kept[key]
    return found


def backbone_unchanged(p: Prepared, target: Target) -> bool:
    """Whether the target's backbone is the source's, to the last bit."""
    here = target.model.get_submodule("backbone").state_dict()
    there = p.source.backbone.state_dict()
    return here.keys() == there.keys() and all(torch.equal(t, there[name].to(t.device)) for name, t in here.items())


def figures_of(p: Prepared, rows: Sequence[Outputs]) -> Figures:
    """The primary metric and the mean loss over parts taken together."""
    logits = torch.cat([o.values for o in rows])
    targets = torch.cat([o.targets for o in rows])
    truth, scores = p.task.truth(targets).numpy(), p.task.scores(logits).numpy()
    value = p.metric.value(truth, scores, np.ones((1, len(truth))))[0]
    return {p.task.primary: float(value), "loss": float(p.task.loss(logits, targets).mean())}


# ---------------------------------------------------------------- by folds, where there is no val


@dataclass(frozen=True)
class CrossValidation:
    """Cross-validation over train: every row judged by models that never saw it."""

    points: list[Point]
    folds: int
    rows: dict[float, Outputs]  # α → logits of all rows, in the order of train


def cross_validate(
    p: Prepared,
    source: Source,
    chosen: Settings,
    features: Callable[[], Outputs] | None,
    keeper: CheckpointManager,
    label: str = "fold",
) -> CrossValidation:
    """Over the folds, at every α from the probe on ``features``, or at α = 1 alone without them.

    The probe of a fold has its λ chosen within the fold's own training rows.
    """
    judged: dict[float, list[Outputs]] = {}
    folds = p.folds()

    def one(k: int) -> dict[float, Outputs]:
        (rows, others), name = folds[k], f"{label} {k}"
        left = keeper.done(name)
        if left is not None:
            ids = tuple(ids_of(some_of(p.splits.train, others)))
            targets = p.targets["train"][others]
            return {float(a): Outputs(ids, v, targets) for a, v in left.tensors.items()}
        found = fit_fold(p, source, chosen, features and features(), rows, others, keeper, name)
        keeper.finish(name, {}, {repr(alpha): o.values for alpha, o in found.items()})
        return found

    numbers = range(len(folds))
    by_arms = p.plan.run.spread == "arms"
    for found in map_over_ranks(p, numbers, one) if by_arms else map(one, numbers):
        for alpha in sorted(found):
            judged.setdefault(alpha, []).append(found[alpha])
    place = np.argsort([i for _, others in folds for i in others])
    together = {alpha: joined(parts).take(place.tolist()) for alpha, parts in judged.items()}
    points = [Point(alpha, figures_of(p, [rows])) for alpha, rows in together.items()]
    return CrossValidation(points, len(folds), together)


def fit_fold(
    p: Prepared,
    source: Source,
    chosen: Settings,
    features: Outputs | None,
    rows: Sequence[int],
    others: Sequence[int],
    keeper: CheckpointManager,
    name: str,
) -> dict[float, Outputs]:
    """Fit on ``rows``; → α → logits of the ``others``."""
    start = None
    if features is not None:
        inner = features.take(rows)
        plan = p.plan.probe
        start = fit_probe(inner, p.task, plan.strengths, folds=p.folds(rows), most=plan.rows)
    target = initial_target(p, source, p.seeds[0], start)
    origin = snapshot(target)
    fit_rows(p, target, chosen, p.seeds[0], rows=rows, keeper=keeper, label=name)
    go = point_loader(p, target, origin, snapshot(target), rows)
    found = {}
    for alpha in ALPHAS if start else (1.0,):
        go(alpha)
        found[alpha] = logits_of(p, target, "train", others)
    return found
