"""Plan → everything that is known before training. What can be refused is refused here, before a
folder is made or a step is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from .. import plugins
from ..checks import Finding
from ..compute import distributed
from ..compute.compiling import check_compiler
from ..compute.device import Compute, choose_device
from ..compute.versions import check_torchvision
from ..data.batches import Batches, LabelledRows
from ..data.columns import InputsOf, cells_of, groups_of, ids_of
from ..data.image_store import PICTURES
from ..data.loading import load_data
from ..data.ordering import EpochOrder
from ..data.preprocessing import Preprocessor, TextPreprocessor, build, whole_for
from ..data.readers import Tokens, make_reader
from ..data.types import Example, Splits
from ..errors import DataError, PlanError
from ..evidence.linear_probe import Fold, folds_of
from ..evidence.scoring import at_threshold
from ..freezing import Adapting
from ..metrics import Metric
from ..model import reinitialise
from ..model.grafting import graft
from ..model.sharded import offloaded
from ..model.types import Source, Target
from ..plan.schema import Plan, ResolvedPlan
from ..regularizers import Found
from ..sources import load_source
from ..tasks import Task
from ..training import optimizers
from ..training.settings import Settings
from . import autotune, scratch_search
from .compatibility import (
    check_adapting,
    check_balanced,
    check_nothing_kept,
    check_rows_of_a_batch,
    check_shard,
    check_source_data,
    cut_texts,
)
from .findings import cheap
from .resolve import BlockRow, Reasons, resolve, scratch_budget, settings, table
from .source_data import SourceData, load_source_data

if TYPE_CHECKING:
    from torch import Tensor


FOLDS = 5  # at most, where the plan does not say


@dataclass(frozen=True)
class Prepared:
    plan: ResolvedPlan
    reasons: Reasons
    splits: Splits
    task: Task
    source: Source
    target: Target  # grafted with the first seed; its backbone is θs until someone fits it
    settings: Settings
    table: list[BlockRow]
    metrics: dict[str, Metric]
    freezing: Any
    regularizers: dict[str, Any]
    preprocessor: Preprocessor
    compute: Compute
    scratch: scratch_search.ScratchBudget | None
    source_data: SourceData | None
    source_notes: list[str]
    strata: list[str]  # of the training rows
    targets: dict[str, Tensor] = field(default_factory=dict)  # split → encoded labels
    findings: tuple[Finding, ...] = ()  # of the checks that need the rows alone
    kept: dict[Hashable, Any] = field(default_factory=dict)  # what seeds share; see train_rows

    @property
    def metric(self) -> Metric:
        return self.metrics[self.task.primary]

    @property
    def seeds(self) -> range:
        return range(self.plan.run.seed, self.plan.run.seed + self.plan.run.seeds)

    def folds(self, rows: Sequence[int] | None = None) -> list[Fold]:
        """Stratified folds of train, or of some of its rows; none where a class has one row."""
        chosen = range(len(self.splits.train)) if rows is None else rows
        groups = groups_of(self.splits.train)
        return folds_of([self.strata[i] for i in chosen], [groups[i] for i in chosen], self.plan.data.folds or FOLDS)

    def batches(self, split: str, rows: Sequence[int] | None = None, *, seed: int = 0, train: bool = False) -> Batches:
        """A split's batches, or those of some of its rows; augmented only for training."""
        examples: Sequence[Example] = getattr(self.splits, split)
        labels = self.targets[split]
        labelled = LabelledRows(examples, labels)
        labelled = labelled if rows is None else labelled.take(rows)
        balanced = train and self.plan.fit.sampling == "balanced"
        reader = make_reader(
            self.preprocessor,
            labelled.examples,
            augment=self.settings.augment if train else None,
            workers=self.plan.run.workers,
            tokens=self._tokens(split, rows),
            images=self.kept.get((PICTURES, split, train and whole_for(self.settings.augment))),
        )
        order = EpochOrder(
            self.plan.fit.batch_size,
            seed,
            [self.strata[i] for i in rows or range(len(labelled))] if balanced else None,
            (distributed.rank(), distributed.world_size()) if train else (0, 1),
        )
        return Batches(labelled, reader, order, self.compute)

    def _tokens(self, split: str, rows: Sequence[int] | None) -> Tokens | None:
        """A split's texts are tokenised once."""
        if not isinstance(self.preprocessor, TextPreprocessor):
            return None
        key = ("tokens", split)
        if key not in self.kept:
            self.kept[key] = Tokens.of(self.preprocessor, InputsOf(getattr(self.splits, split)))
        found: Tokens = self.kept[key]
        return found if rows is None else found.take(rows)

    def train_rows(self, rows: Sequence[int] | None = None) -> RowsOfTrain:
        """Train, or some of its rows, as penalties see it."""
        chosen = range(len(self.splits.train)) if rows is None else rows
        ids = list(ids_of(self.splits.train))
        by_content = sorted(chosen, key=ids.__getitem__)
        return RowsOfTrain(self.task, self, by_content)


@dataclass(frozen=True)
class RowsOfTrain:
    """The :class:`regraft.regularizers.TrainRows` of a plan."""

    task: Task
    p: Prepared
    by_content: Sequence[int]

    def sample(self, rows: int) -> Batches:
        """The first ``rows`` by the hash of their content, as evaluation sees them."""
        return self.p.batches("train", self.by_content[:rows])

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time."""
        if key not in self.p.kept:
            self.p.kept[key] = compute()
        return cast("Found", self.p.kept[key])


def prepare(plan: Plan, *, source: Source | None = None, data: tuple[Splits, Task] | None = None) -> Prepared:
    """Read data and source, settle every automatic choice, and refuse what cannot work.

    ``source`` and ``data`` stand in for what the plan names.

    Raises PlanError, DataError, SourceError or UsageError.
    """
    check_torchvision()
    task_options, freezing, regularizers = plan.plugins.task, plan.plugins.freezing, plan.plugins.regularizers
    device, _ = choose_device(plan.run.device)
    if plan.fit.compile:
        check_compiler(device)
    options = plan.data.for_task(task_options)
    splits, task = data or load_data(options, task_options.make, task_options.strata)
    metrics = {name: at_threshold(cast(Metric, plugins.module("metrics", name)), task) for name in task.metrics}
    if task.primary not in metrics:
        known = ", ".join(metrics)
        raise PlanError([f'task.primary: "{task.primary}" is no metric of this task; there are: {known}'])
    torch.manual_seed(plan.run.seed)  # a random source is drawn here
    source = source or load_source(plan.source.ref, plan.source.options)
    if source.kind not in (splits.kind, "tensor"):
        example = "all-minilm-l6-v2" if splits.kind == "text" else "efficientnet-lite0"
        raise DataError(
            f"{source.name} takes {source.kind}s but {plan.data.path} holds {splits.kind}s: choose "
            f"a source for {splits.kind}s, for example bundled:{example}"
        )
    check_nothing_kept(plan, source, regularizers)
    if plan.fit.start == "random" and plan.fit.alpha not in ("chosen", 1):
        raise PlanError(
            [
                "fit.alpha: a fit that starts from a random head has no frontier: set fit.start to "
                '"probe", or remove fit.alpha'
            ]
        )
    if plan.fit.sampling == "balanced":
        check_balanced(plan, task)
    preprocessor = build(source.preprocess)
    if isinstance(preprocessor, TextPreprocessor):
        splits = replace(splits, notes=(*splits.notes, *cut_texts(preprocessor, splits)))
    if source.kind != "image" and (plan.augment.mixup or plan.augment.cutmix):
        raise PlanError(["augment: MixUp and CutMix are for pictures: set mixup and cutmix to 0"])
    data_of_source, source_notes = load_source_data(plan, source)
    check_source_data(plan, source, regularizers, data_of_source, source_notes)
    if plan.run.threads != "auto":
        torch.set_num_threads(plan.run.threads)
    epochs = 3 if plan.fit.epochs == "auto" else plan.fit.epochs
    names = [b.name for b in source.blocks]
    trains = any(freezing([*names, "head"], e) - {"head"} for e in range(1, epochs + 1))
    timed, why_fast = autotune.settle(
        plan.run, source, preprocessor, splits.train, device, passes=1 + epochs * trains, trains=trains
    )
    resolved, reasons = resolve(plan.model_copy(update={"run": timed}), source, len(splits.train), bool(splits.val))
    reasons |= why_fast
    run = resolved.run
    compute = Compute(device, run.layout, run.precision, resolved.fit.compile, run.threads)
    compute.use_threads()
    source.backbone.to(device)  # every target is a copy of it, and lies there too
    with offloaded(source.backbone, resolved.run.shard):
        target = graft(source, task.outputs, seed=resolved.run.seed)
    chosen = settings(resolved, target)
    if data_of_source is not None:
        batch_size = resolved.fit.batch_size
        data_of_source = replace(data_of_source, batch_size=batch_size, augment=chosen.augment, compute=compute)
    blocks = table(resolved, target, chosen.rates)
    if isinstance(freezing, Adapting):
        check_adapting(resolved, regularizers)
        with freezing.adapted(copy.deepcopy(target), resolved.run.seed) as other:  # refused here
            trained = table(resolved, other, chosen.rates)
        source.notes += tuple(n for n in other.source.notes if n not in source.notes)
        blocks = [replace(b, parameters=t.parameters) for b, t in zip(blocks, trained, strict=True)]
    everything = [b.name for b in target.blocks]
    every_group = optimizers.groups(target, everything, chosen.rates, chosen.weight_decay)
    optimizers.build(chosen.optimizer, chosen.optimizer_options, every_group)  # refused here
    check_rows_of_a_batch(resolved, target, len(splits.train))
    scratch = None
    if "scratch" in resolved.evaluate.controls:
        scratch = scratch_budget(resolved, chosen, has_val=bool(splits.val))
        reinitialise.untrained(source, resolved.run.seed)  # refused here, not after an hour of training
    p = Prepared(
        plan=resolved,
        reasons=reasons,
        splits=splits,
        task=task,
        source=source,
        target=target,
        settings=chosen,
        table=blocks,
        metrics=metrics,
        freezing=freezing,
        regularizers=regularizers,
        preprocessor=preprocessor,
        compute=compute,
        scratch=scratch,
        source_data=data_of_source,
        source_notes=source_notes,
        strata=task_options.strata(cells_of(splits.train)),
        targets={s: task.encode(cells_of(getattr(splits, s))) for s in ("train", "val", "test") if getattr(splits, s)},
        findings=cheap(splits, task) if data is None else (),
    )
    penalties = {  # refused here
        name: (r, r.prepare(target, data_of_source, p.train_rows())) for name, r in regularizers.items()
    }
    if resolved.run.shard:
        check_shard(resolved, freezing, penalties, target)
    return p
