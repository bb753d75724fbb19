"""Plan → job: all that is known before training.

What can be refused is refused here, before a folder is made or a step is taken. The checks at the end compare the
plan with data, source and target.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from .. import plugins
from ..compute.compiling import check_compiler
from ..compute.device import Compute, choose_device
from ..compute.versions import check_torchvision
from ..data.columns import InputsOf, cells_of
from ..data.loading import load_data
from ..data.preprocessing import Preprocessor, TextPreprocessor, build
from ..data.slices import check_columns, read_values
from ..data.types import SourceDataOptions, Splits
from ..errors import DataError, PlanError, shorten
from ..evidence.scoring import at_threshold
from ..freezing import Adapting
from ..metrics import Metric
from ..model import reinitialise
from ..model.grafting import graft
from ..model.sharded import offloaded
from ..model.trainable import has_batch_norm
from ..model.types import Source, Target
from ..plan.schema import EvaluatePlan, Plan, ResolvedPlan
from ..regularizers import Regularizer
from ..runs.result_parts import Block
from ..sources import load_source
from ..tasks import Task
from ..training import optimizers
from ..training.settings import FitSpec, Settings
from . import autotune
from .findings import cheap
from .job import Job, PreparationNotes
from .resolve import Reasons, resolve, scratch_budget, settings, table
from .target_data import Loading, SourceData, TargetData, load_source_data

if TYPE_CHECKING:
    from ..compute.arrays import Kind
    from ..regularizers import Penalty, TrainRows

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
    names = () if data else plan.evaluate.slices  # given rows are not evaluated on test
    check_columns(options, names)
    splits, task = data or load_data(options, task_options.make, task_options.strata)
    slices = read_values(options, names, splits.test, "test rows")
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
    resolved, reasons = settle(plan, source, preprocessor, (splits, task), device)
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
    job = Job(resolved, rows, source, source_data, target, spec, compute, scratch, notes, slices)
    check_penalties(resolved, target, source_data, rows.train_rows())
    return job


def prepare_bare(plan: Plan, data: tuple[Splits, Task], source: Source | None) -> Job:
    """Return the job of a fit of these rows by default settings, so that it shares their features' cache entries."""
    named = plan.source if source is None else plan.source.model_copy(update={"ref": source.name})
    bare = plan.with_sections(
        source=named,
        freezing={"name": "everything"},
        regularizers={},
        evaluate=EvaluatePlan(),
        source_data=SourceDataOptions(path="none"),
        fit=plan.fit.model_copy(update={"retain": None, "alpha": "chosen"}),
        run=plan.run.model_copy(update={"seeds": 1}),
    )
    return prepare(bare, source=source, data=data)


def settle(
    plan: Plan, source: Source, preprocessor: Preprocessor, rows: tuple[Splits, Task], device: torch.device
) -> tuple[ResolvedPlan, Reasons]:
    """Return the plan without "auto", and the reasons; time layouts and precisions if the plan leaves them open."""
    splits, task = rows
    if plan.run.threads != "auto":
        torch.set_num_threads(plan.run.threads)
    epochs = 3 if plan.fit.epochs == "auto" else plan.fit.epochs
    names = [b.name for b in source.blocks]
    trains = any(plan.plugins.freezing([*names, "head"], e) - {"head"} for e in range(1, epochs + 1))
    run, measured = autotune.settle(
        plan.run, source, preprocessor, splits.train, device, passes=1 + epochs * trains, trains=trains
    )
    resolved, reasons = resolve(
        plan.model_copy(update={"run": run}),
        source,
        len(splits.train),
        has_val=bool(splits.val),
        one_class=task.calibrates,
    )
    return resolved, reasons | measured


def check_penalties(plan: ResolvedPlan, target: Target, source_data: SourceData | None, rows: TrainRows) -> None:
    """Raise the error of a penalty that does not suit the target, or PlanError if weights cannot be sharded."""
    penalties = {name: (r, r.prepare(target, source_data, rows)) for name, r in plan.plugins.regularizers.items()}
    if plan.run.shard:
        check_shard(plan, penalties, target)


def block_table(plan: ResolvedPlan, target: Target, chosen: Settings) -> list[Block]:
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
    return [b.model_copy(update={"parameters": t.parameters}) for b, t in zip(rows, trained, strict=True)]


# ---------------------------------------------------------------- checks of a plan against data, source and target


# steps that look at each weight alone, so that a share of a tensor is stepped as the whole is
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


def check_primary(task: Task) -> None:
    """Raise PlanError if the task does not have the metric that choices are to be made by."""
    if task.primary not in task.metrics:
        known = ", ".join(task.metrics)
        raise PlanError(f'task.primary: "{task.primary}" is no metric of this task; there are: {known}')


def check_source(plan: Plan, task: Task, kind: Kind, source: Source) -> None:
    """Raise PlanError for settings that do not go with the source or the task, and DataError for rows of a kind
    that the source does not take."""
    if source.kind not in (kind, "tensor"):
        example = "all-minilm-l6-v2" if kind == "text" else "efficientnet-lite0"
        raise DataError(
            f"{source.name} takes {source.kind}s but {plan.data.path} holds {kind}s: choose "
            f"a source for {kind}s, for example bundled:{example}"
        )
    check_nothing_kept(plan, source)
    if plan.fit.start == "random" and plan.fit.alpha not in ("chosen", 1):
        raise PlanError(
            'fit.alpha: a fit that starts from a random head has no frontier: set fit.start to "probe", or remove '
            "fit.alpha"
        )
    if plan.fit.after_folds == "average" and plan.fit.batch_norm == "train":
        raise PlanError(
            'fit.after_folds: statistics of batch norms do not average: set it to "refit", or fit.batch_norm = "frozen"'
        )
    if plan.fit.after_folds == "average" and plan.fit.start == "random":
        raise PlanError(
            'fit.after_folds: heads drawn at random do not average: set it to "refit", or another fit.start'
        )
    if plan.fit.sampling == "balanced":
        check_balanced(plan, task)
    if source.kind != "image" and (plan.augment.mixup or plan.augment.cutmix):
        raise PlanError("augment: MixUp and CutMix are for pictures: set mixup and cutmix to 0")


def check_world_size(plan: Plan, world_size: int) -> None:
    """Raise PlanError if one process alone is to shard weights."""
    if plan.run.shard and world_size == 1:
        raise PlanError("run.shard: one process has no other to share weights with: --nproc N, or run.shard=false")


def check_shard(plan: Plan, penalties: Mapping[str, tuple[Regularizer, Penalty]], target: Target) -> None:
    """Raise PlanError for settings, penalties and weights that cannot be sharded."""
    seen: dict[int, str] = {}
    tied: list[str] = []
    for name, p in target.model.named_parameters(remove_duplicate=False):
        if seen.setdefault(id(p), name) != name:
            tied.append(f"{seen[id(p)]} = {name}")
    single = [name for name, p in target.model.named_parameters() if p.ndim == 0]
    problems = [
        f"run.shard: {what}"
        for wrong, what in (
            (plan.run.spread == "arms", 'arms hold whole models: set run.spread to "rows"'),
            (plan.run.layout == "channels_last", 'sharded weights are contiguous: set run.layout to "contiguous"'),
            (plan.fit.compile, "sharded weights are not compiled: set fit.compile to false"),
            (plan.fit.average > 0, "an average would hold the whole weights: set fit.average to 0"),
            (plan.fit.after_folds == "average", 'the folds\' weights would be whole: set fit.after_folds to "refit"'),
            (plan.fit.views > 0, "every step runs from the first block on: set fit.views to 0"),
            (
                plan.fit.optimizer not in ELEMENTWISE,
                f"{plan.fit.optimizer} may look at whole tensors: choose of {', '.join(ELEMENTWISE)}",
            ),
            (plan.source_data.each_epoch, "source_data.each_epoch takes the whole weights: unset it"),
            (isinstance(plan.plugins.freezing, Adapting), "adapters are small enough: choose another freezing"),
            (bool(tied), f"tied weights cannot be sharded ({shorten(tied, 3)}): set it to false"),
            (bool(single), f"weights of no dimension cannot be ({shorten(single, 3)}): set it to false"),
        )
        if wrong
    ]
    problems += [
        f"run.shard: regularizer {name} takes whole weights, of the source or of a sample: remove it"
        for name, (options, penalty) in penalties.items()
        if options.uses_source or options.needs_source_data or penalty.per == "step" or penalty.maps or penalty.after
    ]
    if problems:
        raise PlanError(problems)


def check_adapting(plan: Plan) -> None:
    """Raise PlanError for penalties on weights that do not train under an adapting strategy."""
    regularizers = plan.plugins.regularizers
    problems = [
        f"regularizers.{n}.by_block is about the source's weights, and freezing {plan.freezing['name']} "
        f"trains others: remove one of the two"
        for n, r in regularizers.items()
        if getattr(r, "by_block", None)
    ]
    problems += [
        f"regularizers.{n} pulls weights to the source, and freezing {plan.freezing['name']} leaves them "
        f"there: remove one of the two"
        for n, r in regularizers.items()
        if r.pulls_to_source
    ]
    if problems:
        raise PlanError(problems)


def check_rows_of_a_batch(plan: ResolvedPlan, target: Target, rows: int) -> None:
    """Raise PlanError for batches of one row if batch norm takes its statistics from them."""
    trains = plan.fit.batch_norm == "train" or "scratch" in plan.evaluate.controls
    if min(plan.fit.batch_size, rows) == 1 and trains and has_batch_norm(target.model):
        raise PlanError(
            "fit.batch_size: batch norm that trains has no statistics of one row: set it to 2 or more, "
            'or fit.batch_norm = "frozen" without the scratch control'
        )


def check_balanced(plan: Plan, task: Task) -> None:
    """Raise PlanError for balanced sampling without classes, or beside class weights."""
    if not task.has_classes:
        raise PlanError(f"fit.sampling: a {task.name} task has no classes to balance: remove sampling")
    if plan.task.get("class_weights", "none") != "none":
        raise PlanError("fit.sampling and task.class_weights both make up for rare classes: choose one")


def check_source_data(plan: Plan, source: Source, data: SourceData | None, notes: Sequence[str]) -> None:
    """Raise PlanError for settings that need source data, or a frontier, without it."""
    problems = []
    if data is None:
        why = f" ({'; '.join(notes)})" if notes else ""
        problems += [
            f'regularizer "{n}" needs labelled source data{why}: add --source-data PATH, or remove it'
            for n, r in plan.plugins.regularizers.items()
            if r.needs_source_data
        ]
        if plan.fit.retain is not None:
            problems.append(f"fit.retain is measured on source data{why}: add --source-data PATH, or remove it")
        if plan.source_data.each_epoch:
            problems.append(f"source_data.each_epoch needs labelled source data{why}: add --source-data PATH")
    if plan.fit.retain is not None and plan.fit.alpha != "chosen":
        problems.append('fit.retain chooses α: set fit.alpha to "chosen", or remove fit.retain')
    if plan.fit.retain is not None and (plan.fit.start == "random" or source.nothing_kept):
        problems.append("fit.retain needs a fit that starts from the probe of a source: remove fit.retain")
    if plan.fit.retain is not None and data is not None and not data.metric.higher_is_better:
        problems.append(
            f"fit.retain: retention is not defined for {data.task.primary}, of which less is better: remove it"
        )
    if problems:
        raise PlanError(problems)


def check_nothing_kept(plan: Plan, source: Source) -> None:
    """Raise PlanError for settings that mean nothing if no weight comes from a source."""
    if not source.nothing_kept:
        return
    wrong = {
        "evaluate.controls": "scratch" if "scratch" in plan.evaluate.controls else "",
        "freezing.name": plan.freezing.get("name", "everything"),
        "fit.alpha": "" if plan.fit.alpha in ("chosen", 1) else plan.fit.alpha,
        "fit.layer_decay": "" if plan.fit.layer_decay == 1 else plan.fit.layer_decay,
        **{f"regularizers.{n}": n for n, r in plan.plugins.regularizers.items() if r.uses_source},
    }
    wrong["freezing.name"] = "" if wrong["freezing.name"] == "everything" else wrong["freezing.name"]
    problems = [
        f"{key}: {value} needs weights that were kept, and {source.name} keeps none: remove it"
        for key, value in wrong.items()
        if value
    ]
    if problems:
        raise PlanError(problems)


def cut_texts(preprocessor: TextPreprocessor, splits: Splits) -> list[str]:
    """Return a note where texts are longer than the source reads.

    Raises DataError for texts of which the source's tokenizer makes no token.
    """
    parts = (splits.train, splits.val, splits.test)
    count, cut, limit = sum(map(len, parts)), 0, preprocessor.spec.max_length
    mute: list[str] = []
    for part in parts:
        lengths = preprocessor.lengths(InputsOf(part))
        cut += sum(n > limit for n in lengths)
        mute += [part[i].where for i, n in enumerate(lengths) if not n]
    if mute:
        raise DataError(
            f"the source's tokenizer makes no token of {len(mute)} of {count} texts: {shorten(mute)}; remove "
            "them, or choose a source that knows their words"
        )
    share = f"{cut} of {count} texts ({cut / count:.1%})"
    return [f"{share} are longer than {limit} tokens and are cut there"] if cut else []
