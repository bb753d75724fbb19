"""Plan → job: all that is known before training. What can be refused is refused here, before a folder is
made or a step is taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch

from .. import plugins
from ..compute.compiling import check_compiler
from ..compute.device import Compute, choose_device
from ..compute.versions import check_torchvision
from ..data.columns import cells_of
from ..data.loading import load_data
from ..data.preprocessing import Preprocessor, TextPreprocessor, build
from ..data.types import Splits
from ..evidence.scoring import at_threshold
from ..freezing import Adapting
from ..metrics import Metric
from ..model import reinitialise
from ..model.grafting import graft
from ..model.sharded import offloaded
from ..model.types import Source, Target
from ..plan.schema import Plan, ResolvedPlan
from ..sources import load_source
from ..tasks import Task
from ..training import optimizers
from ..training.settings import FitSpec, Settings
from . import autotune
from .compatibility import (
    check_adapting,
    check_primary,
    check_rows_of_a_batch,
    check_shard,
    check_source,
    check_source_data,
    cut_texts,
)
from .findings import cheap
from .job import Job, PreparationNotes
from .resolve import BlockRow, Reasons, resolve, scratch_budget, settings, table
from .source_data import load_source_data
from .target_data import Loading, TargetData

MAX_FOLDS = 5  # where the plan does not say


def prepare(plan: Plan, *, source: Source | None = None, data: tuple[Splits, Task] | None = None) -> Job:
    """Read data and source, settle every automatic choice, and refuse what cannot work.

    ``source`` and ``data`` stand in for what the plan names.

    Raises PlanError, DataError, SourceError or UsageError.
    """
    check_torchvision()
    task_options, freezing = plan.plugins.task, plan.plugins.freezing
    device, _ = choose_device(plan.run.device)
    if plan.fit.compile:
        check_compiler(device)
    options = plan.data.for_task(task_options)
    splits, task = data or load_data(options, task_options.make, task_options.strata)
    metrics = {name: at_threshold(cast(Metric, plugins.module("metrics", name)), task) for name in task.metrics}
    check_primary(task)
    torch.manual_seed(plan.run.seed)  # a random source is drawn here
    source = source or load_source(plan.source.ref, plan.source.options)
    check_source(plan, task, splits.kind, source)
    preprocessor = build(source.preprocess)
    if isinstance(preprocessor, TextPreprocessor):
        splits = replace(splits, notes=(*splits.notes, *cut_texts(preprocessor, splits)))
    source_data, source_notes = load_source_data(plan, source)
    check_source_data(plan, source, source_data, source_notes)
    resolved, reasons = settle(plan, source, preprocessor, splits, device)
    run, fit = resolved.run, resolved.fit
    compute = Compute(device, run.layout, run.precision, fit.compile, run.threads)
    compute.use_threads()
    source.backbone.to(device)  # every target is a copy of it, and lies there too
    with offloaded(source.backbone, run.shard):
        target = graft(source, task.outputs, seed=run.seed)
    chosen = settings(resolved, target)
    if source_data is not None:
        source_data = replace(source_data, batch_size=fit.batch_size, augment=chosen.augment, compute=compute)
    blocks = block_table(resolved, target, chosen)
    every_group = optimizers.groups(target, [b.name for b in target.blocks], chosen.rates, chosen.weight_decay)
    optimizers.build(chosen.optimizer, chosen.optimizer_options, every_group)  # refused here
    check_rows_of_a_batch(resolved, target, len(splits.train))
    scratch = None
    if "scratch" in resolved.evaluate.controls:
        scratch = scratch_budget(resolved, chosen, has_val=bool(splits.val))
        reinitialise.untrained(source, run.seed)  # refused here, not after an hour of training
    rows = TargetData(
        splits,
        task,
        metrics,
        targets={s: task.encode(cells_of(getattr(splits, s))) for s in ("train", "val", "test") if getattr(splits, s)},
        strata=task_options.strata(cells_of(splits.train)),
        preprocessor=preprocessor,
        loading=Loading(fit.batch_size, run.workers, chosen.augment, fit.sampling == "balanced"),
        compute=compute,
        fold_count=resolved.data.folds or MAX_FOLDS,
    )
    spec = FitSpec(task, metrics[task.primary], chosen, freezing, seed=run.seed)
    notes = PreparationNotes(reasons, blocks, source_notes, cheap(splits, task) if data is None else ())
    job = Job(resolved, rows, source, source_data, target, spec, compute, scratch, notes)
    check_penalties(job)
    return job


def settle(
    plan: Plan, source: Source, preprocessor: Preprocessor, splits: Splits, device: torch.device
) -> tuple[ResolvedPlan, Reasons]:
    """Return the plan without "auto", and the reasons; time layouts and precisions if the plan leaves them open."""
    if plan.run.threads != "auto":
        torch.set_num_threads(plan.run.threads)
    epochs = 3 if plan.fit.epochs == "auto" else plan.fit.epochs
    names = [b.name for b in source.blocks]
    trains = any(plan.plugins.freezing([*names, "head"], e) - {"head"} for e in range(1, epochs + 1))
    run, measured = autotune.settle(
        plan.run, source, preprocessor, splits.train, device, passes=1 + epochs * trains, trains=trains
    )
    resolved, reasons = resolve(plan.model_copy(update={"run": run}), source, len(splits.train), bool(splits.val))
    return resolved, reasons | measured


def check_penalties(job: Job) -> None:
    """Raise the error of a penalty that does not suit the job, or PlanError if weights cannot be sharded."""
    penalties = {
        name: (r, r.prepare(job.target, job.source_data, job.data.train_rows()))
        for name, r in job.plan.plugins.regularizers.items()
    }
    if job.plan.run.shard:
        check_shard(job.plan, penalties, job.target)


def block_table(plan: ResolvedPlan, target: Target, chosen: Settings) -> list[BlockRow]:
    """Return a row a block, with the parameters that train in the fit.

    Raises PlanError for an adapting strategy that does not suit the target, or the penalties.
    """
    rows, freezing = table(plan, target, chosen.rates), plan.plugins.freezing
    if not isinstance(freezing, Adapting):
        return rows
    check_adapting(plan)
    with freezing.adapted(copy.deepcopy(target), plan.run.seed) as other:
        trained = table(plan, other, chosen.rates)
    target.source.notes += tuple(n for n in other.source.notes if n not in target.source.notes)
    return [replace(b, parameters=t.parameters) for b, t in zip(rows, trained, strict=True)]
