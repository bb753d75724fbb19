"""Fine-tuning: min over θ of L(Dt, θ) + λ·R(θ), from the probe's head on.

The starting point competes for the best epoch, so the result is never worse than it on val. Epoch 0
is the starting point; without val the last epoch stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

from ..compute import distributed
from ..compute.fsdp import has_shards
from ..evidence.intervals import value_of
from ..evidence.selection import improves
from ..model.cuts import UpperBlocks
from ..model.forward import outputs
from ..model.trainable import set_trainable
from ..model.weights import restore, snapshot
from .averaging import use_average
from .objective import Objective
from .records import NONE, SILENT, Epoch, FitResult
from .schedules import RateSchedule, frozen_blocks, last_unfreeze_epoch, lowest_trainable
from .state import FitState

if TYPE_CHECKING:
    from ..compute.device import Compute
    from ..data.batches import LabelledBatch
    from ..model.types import Target
    from .records import Checkpoints, FitData, Monitor, PhaseData
    from .settings import FitSpec


def fine_tune(
    target: Target,
    data: FitData,
    spec: FitSpec,
    compute: Compute,
    *,
    monitor: Monitor = SILENT,
    checkpoints: Checkpoints = NONE,
) -> FitResult:
    """Fit the target's model in place; afterwards it holds the best epoch's weights, frozen.

    ``monitor`` observes the fit. ``checkpoints`` save it after steps and epochs, and let it resume, with the
    same bits as without the interruption.

    Raises DivergedError at the first loss or gradient that is not finite, and UsageError for a checkpoint of
    another model.
    """
    settings, blocks = spec.settings, [b.name for b in target.blocks]
    model = compute.move_model(target.model)
    state, phase = begin(target, data, spec, compute, monitor, checkpoints)
    progress, objective = state.progress, Objective(target, spec, compute, phase.cut, monitor.note)
    frozen = frozen_blocks(spec.freezing, blocks, min(progress.epoch, settings.epochs))
    per_epoch = ceil(data.train.count / settings.accumulate)  # steps
    schedule = RateSchedule(settings.schedule, settings.epochs * per_epoch, settings.warmup)
    last_unfreeze, stopped = last_unfreeze_epoch(spec.freezing, blocks, settings.epochs), "all epochs done"

    for epoch in range(progress.epoch, settings.epochs + 1):
        if settings.patience and epoch - 1 - max(progress.best_epoch, last_unfreeze) >= settings.patience:
            stopped = f"no gain on val for {settings.patience} epochs"
            break
        optimizer, wanted = state.optimizer, spec.freezing(blocks, epoch)
        if optimizer is None or wanted != set(progress.trainable):
            optimizer = state.train_blocks(wanted)
            if lowest_trainable(blocks, wanted) != frozen:
                frozen = lowest_trainable(blocks, wanted)
                phase = data.phase(frozen)
            objective = replace(objective, cut=phase.cut)
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}

        for micro_batches in group_batches(phase.train.epoch(epoch, progress.batches), settings.accumulate):
            for group in optimizer.param_groups:
                factor = schedule.factor(progress.step, progress.thawed[group["block"]])
                group["lr"] = progress.rates[group["block"]] = settings.rates[group["block"]] * factor
            terms = objective.step(micro_batches, params, optimizer, epoch, progress.step)
            state.count_step(terms, len(micro_batches))
            monitor.step(progress)
            checkpoints.save(progress, state.tensors)

        if settings.batch_norm == "train":
            distributed.average_buffers(model)
        with use_average(model, state.average):
            figures = validate(target, phase, spec, compute)
            better = not figures or improves(figures, progress.best, spec.metric)  # without val the last epoch stands
            if better:
                progress.best, progress.best_epoch = figures, epoch
            if better and (figures or epoch == settings.epochs):
                state.best = snapshot(target)
            source = monitor.source_metrics()
        means = {name: total / per_epoch for name, total in progress.sums.items()}
        rates = {g["block"]: g["lr"] for g in optimizer.param_groups}
        monitor.epoch(Epoch(epoch, progress.step, means, rates, figures, better, source))
        progress.epoch, progress.batches, progress.sums = epoch + 1, 0, {}
        monitor.step(progress)
        checkpoints.save(progress, state.tensors)

    restore(target, state.best)
    set_trainable(target, frozenset(), settings.batch_norm)
    return FitResult(progress.best_epoch, progress.epoch - 1, progress.step, progress.best, progress.start, stopped)


def begin(
    target: Target, data: FitData, spec: FitSpec, compute: Compute, monitor: Monitor, checkpoints: Checkpoints
) -> tuple[FitState, PhaseData]:
    """Return the state and the rows that the first epoch starts from: the starting point, or a checkpoint."""
    state, saved = FitState.begin(target, spec, compute.device), checkpoints.load()
    if saved is not None:
        state.load(saved)
    blocks, first = [b.name for b in target.blocks], min(state.progress.epoch, spec.settings.epochs)
    phase = data.phase(frozen_blocks(spec.freezing, blocks, first))
    if saved is not None:
        state.load_random(saved)
        return state, phase
    figures = validate(target, phase, spec, compute)
    state.progress.start, state.progress.best, state.best = figures, figures, snapshot(target)
    monitor.epoch(Epoch(0, 0, {}, {}, figures, True, monitor.source_metrics()))
    return state, phase


def validate(target: Target, phase: PhaseData, spec: FitSpec, compute: Compute) -> dict[str, float]:
    """Return the primary metric and the mean loss on val; nothing without val."""
    if phase.val is None:
        return {}
    task, model = spec.task, UpperBlocks(target, phase.val_cut) if phase.val_cut else target.model
    # every rank takes part in a forward pass of sharded weights, so each evaluates all rows
    with distributed.single_process(has_shards(target.model)):
        rows = outputs(model, phase.val, compute)
    truth, scores = task.truth(rows.targets).numpy(), task.scores(rows.values).numpy()
    loss = task.loss(rows.values, rows.targets).mean()
    figures = {task.primary: value_of(spec.metric, truth, scores), "loss": float(loss)}
    return distributed.broadcast(figures) if has_shards(target.model) else figures  # all ranks choose alike


def group_batches(batches: Iterable[LabelledBatch], count: int) -> Iterator[list[LabelledBatch]]:
    """Yield the micro-batches of each step; the last step may have fewer."""
    batches = iter(batches)
    while step := list(islice(batches, count)):
        yield step
