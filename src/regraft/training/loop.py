"""Fine-tuning: min over θ of L(Dt, θ) + λ·R(θ), from the probe's head on.

The starting point competes for the best epoch, so the result is never worse than it on val. Epoch 0
is the starting point; without val the last epoch stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..compute import distributed
from ..compute.device import move_model
from ..compute.fsdp import is_sharded
from ..data.keyed_random import stable
from ..evidence.selection import improves
from ..model.cuts import UpperBlocks
from ..model.forward import outputs
from ..model.trainable import set_trainable
from ..model.weights import restore, snapshot
from . import optimizers
from .averaging import average_of, averaged
from .objective import Objective
from .records import Epoch, Fit, PhaseData, Progress, Saved
from .schedules import SCHEDULES, factor
from .state import put_back, put_random_back, tensors_of
from .unfreezing import last_unfreeze_epoch, lowest_trainable

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.batches import Batches
    from ..freezing import Freezing
    from ..metrics import Metric
    from ..model.types import Target
    from ..regularizers import Penalty
    from ..tasks import Task
    from .objective import LabelledBatch
    from .records import SaveCheckpoint
    from .settings import Settings


def fine_tune(
    target: Target,
    train: Batches,
    val: Batches | None,
    task: Task,
    metric: Metric,
    settings: Settings,
    *,
    freezing: Freezing,
    penalties: Mapping[str, Penalty],
    device: torch.device,
    seed: int,
    log: Callable[[Epoch], None] = lambda epoch: None,
    watch: Callable[[], dict[str, float]] = dict,
    feeds: Callable[[int], PhaseData] | None = None,
    since: Saved | None = None,
    keep: SaveCheckpoint = lambda at, tensors: None,
    say: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Fit the target's model in place; afterwards it holds the best epoch's weights, frozen.

    ``feeds`` may give the rows as the output of so many frozen leading blocks.
    ``keep`` is told after every step and every epoch where the fit stands, and may save that; from
    ``since``, which was saved so, the fit goes on.
    ``watch`` looks at the source task after every epoch; nothing is chosen by it.

    Raises DivergedError at the first loss or gradient that is not finite.
    """
    model = move_model(target.model, device, settings.layout)
    blocks = [b.name for b in target.blocks]
    per_epoch = ceil(ceil(len(train) / train.batch_size) / settings.accumulate)
    steps = settings.epochs * per_epoch
    warm = int(settings.warmup * steps)
    schedule = SCHEDULES[settings.schedule]
    # dropout; order and augmentation have their own generators
    rank = distributed.rank()
    torch.manual_seed(stable("dropout", seed, rank) if rank else seed)
    distributed.broadcast_model(model)

    average = average_of(model, settings.average)
    optimizer: torch.optim.Optimizer | None = None
    at, best_state = Progress(), dict[str, "Tensor"]()
    if since is not None:
        at, optimizer, best_state = put_back(since, target, settings, average)
    first = min(at.epoch, settings.epochs)  # that is trained now
    frozen = lowest_trainable(blocks, freezing(blocks, first)) if first else 0
    feed = feeds(frozen) if feeds else PhaseData(train, val)
    objective = Objective(target, task, penalties, settings, device, seed, feed.cut, say)
    draws = {name: p.draws for name, p in penalties.items() if p.draws is not None}
    if since is None:
        start = validate(target, feed.val, task, metric, device, settings.layout, feed.val_cut)
        at.start, at.best, best_state = start, start, snapshot(target)
        log(Epoch(0, 0, {}, {}, start, True, watch()))
    else:
        for name, drawn in at.drawn.items():
            draws[name].drawn = drawn
        put_random_back(since, device)  # the first process's
        if rank:
            torch.manual_seed(stable("dropout", seed, rank, at.step))
    last_thaw, stopped = last_unfreeze_epoch(freezing, blocks, settings.epochs), "all epochs done"

    def tensors() -> dict[str, Tensor]:
        return tensors_of(model, optimizer, average, best_state, device)

    for epoch in range(at.epoch, settings.epochs + 1):
        if settings.patience and epoch - 1 - max(at.best_epoch, last_thaw) >= settings.patience:
            stopped = f"no gain on val for {settings.patience} epochs"
            break
        wanted, trainable = freezing(blocks, epoch), frozenset(at.trainable)
        if wanted != trainable or optimizer is None:
            set_trainable(target, wanted, settings.batch_norm)
            groups = optimizers.groups(target, wanted, settings.rates, settings.weight_decay)
            optimizer = optimizers.build(settings.optimizer, settings.optimizer_options, groups, before=optimizer)
            at.thawed |= dict.fromkeys(wanted - trainable, at.step)
            at.trainable = sorted(wanted)
            if feeds and lowest_trainable(blocks, wanted) != frozen:
                frozen = lowest_trainable(blocks, wanted)
                feed = feeds(frozen)
            objective = replace(objective, cut=feed.cut)
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}

        for micro_batches in together(feed.train.epoch(epoch, at.batches), settings.accumulate):
            for group in optimizer.param_groups:
                thawed = at.thawed[group["block"]]
                share = factor(schedule, step=at.step, steps=steps, warm=warm, thawed=thawed)
                group["lr"] = at.rates[group["block"]] = settings.rates[group["block"]] * share
            values = objective.step(micro_batches, params, optimizer, epoch, at.step)
            for name, value in values.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            if average is not None:
                average.update_parameters(model)
            at.step += 1
            at.batches += len(micro_batches)
            at.drawn = {name: d.drawn for name, d in draws.items()}
            keep(at, tensors)

        if settings.batch_norm == "train":
            distributed.average_buffers(model)
        with averaged(model, average):
            figures = validate(target, feed.val, task, metric, device, settings.layout, feed.val_cut)
            # without val the last stands
            better = not figures or improves(figures, at.best, metric)
            if better:
                at.best, at.best_epoch = figures, epoch
            if better and (figures or epoch == settings.epochs):
                best_state = snapshot(target)
            watched = watch()
        means = {name: total / per_epoch for name, total in at.sums.items()}
        rates = {g["block"]: g["lr"] for g in optimizer.param_groups}
        log(Epoch(epoch, at.step, means, rates, figures, better, watched))
        at.epoch, at.batches, at.sums = epoch + 1, 0, {}
        keep(at, tensors)

    restore(target, best_state)
    set_trainable(target, frozenset(), settings.batch_norm)
    return Fit(at.best_epoch, at.epoch - 1, at.step, at.best, at.start, stopped)


def validate(
    target: Target, val: Batches | None, task: Task, metric: Metric, device: torch.device, layout: str, cut: int = 0
) -> dict[str, float]:
    """The primary metric and the mean loss on val; nothing where there is no val."""
    if val is None:
        return {}
    # of divided weights no process computes anything without the others: each judges all rows
    with distributed.single_process(is_sharded(target.model)):
        rows = outputs(UpperBlocks(target, cut) if cut else target.model, val, device, layout)
    truth, scores = task.truth(rows.targets).numpy(), task.scores(rows.values).numpy()
    value = metric.value(truth, scores, np.ones((1, len(truth))))[0]
    loss = task.loss(rows.values, rows.targets).mean()
    found = {task.primary: float(value), "loss": float(loss)}
    return distributed.broadcast(found) if is_sharded(target.model) else found  # all choose alike


def together(batches: Iterable[LabelledBatch], count: int) -> Iterator[list[LabelledBatch]]:
    """The micro-batches of a step; the last step may have fewer."""
    batches = iter(batches)
    while chunk := list(islice(batches, count)):
        yield chunk
