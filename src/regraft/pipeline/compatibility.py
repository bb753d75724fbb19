"""Checks of a plan against data, source and target. They refuse what does not go together before anything trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..data.columns import InputsOf
from ..data.preprocessing import TextPreprocessor
from ..data.types import Splits
from ..errors import DataError, PlanError, shorten
from ..freezing import Adapting
from ..model.trainable import has_batch_norm
from ..model.types import Source, Target
from ..plan.schema import Plan, ResolvedPlan
from ..regularizers import Regularizer
from ..tasks import Task
from .source_data import SourceData

if TYPE_CHECKING:
    from ..compute.arrays import Kind
    from ..regularizers import Penalty


# steps that look at each weight alone, so that a share of a tensor is stepped as the whole is
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


def check_primary(task: Task) -> None:
    """Raise PlanError if the task does not have the metric that choices are to be made by."""
    if task.primary not in task.metrics:
        known = ", ".join(task.metrics)
        raise PlanError([f'task.primary: "{task.primary}" is no metric of this task; there are: {known}'])


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
            [
                "fit.alpha: a fit that starts from a random head has no frontier: set fit.start to "
                '"probe", or remove fit.alpha'
            ]
        )
    if plan.fit.sampling == "balanced":
        check_balanced(plan, task)
    if source.kind != "image" and (plan.augment.mixup or plan.augment.cutmix):
        raise PlanError(["augment: MixUp and CutMix are for pictures: set mixup and cutmix to 0"])


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
            (plan.run.layout == "channels_last", 'divided weights are contiguous: set run.layout to "contiguous"'),
            (plan.fit.compile, "divided weights are not compiled: set fit.compile to false"),
            (plan.fit.average > 0, "an average would hold the whole weights: set fit.average to 0"),
            (plan.fit.views > 0, "every step runs from the first block on: set fit.views to 0"),
            (
                plan.fit.optimizer not in ELEMENTWISE,
                f"{plan.fit.optimizer} may look at whole tensors: choose of {', '.join(ELEMENTWISE)}",
            ),
            (plan.source_data.each_epoch, "source_data.each_epoch takes the whole weights: unset it"),
            (isinstance(plan.plugins.freezing, Adapting), "adapters are small enough: choose another freezing"),
            (bool(tied), f"tied weights cannot be divided ({shorten(tied, 3)}): set it to false"),
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
            [
                "fit.batch_size: batch norm that trains has no statistics of one row: set it to 2 or more, "
                'or fit.batch_norm = "frozen" without the scratch control'
            ]
        )


def check_balanced(plan: Plan, task: Task) -> None:
    """Raise PlanError for balanced sampling without classes, or beside class weights."""
    if not task.has_classes:
        raise PlanError([f"fit.sampling: a {task.name} task has no classes to balance: remove sampling"])
    if plan.task.get("class_weights", "none") != "none":
        raise PlanError(["fit.sampling and task.class_weights both make up for rare classes: choose one"])


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
