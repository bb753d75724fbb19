"""The evaluation of a run: test opened once, every arm and control on the same rows, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import nan, sqrt
from typing import Any, Literal

import numpy as np

from ..evidence.abstention import measure_abstention
from ..evidence.calibration import measure_calibration
from ..evidence.conformal import has_sets, measure_sets
from ..evidence.intervals import value_of
from ..evidence.linear_probe import Probe
from ..evidence.looks import FIRST_LOOK, LOOKS, MOST_SEEDS, Look, level_of_look, look
from ..evidence.retention import measure_proxies, measure_retention
from ..evidence.scoring import Predictions, estimates, gain, score
from ..evidence.slices import slice_rows
from ..evidence.verdict import MIN_SEEDS, decide
from ..io.progress import stage
from ..metrics import Metric
from ..model.types import Block as ModelBlock
from ..model.types import LoadedTensor, Source, Target
from ..model.weights import restore, snapshot
from ..plan.schema import EvaluatePlan
from ..runs.confusion import confusion_of
from ..runs.estimates import Estimate
from ..runs.guarantees import Abstention, Sets
from ..runs.result import Result
from ..runs.result_parts import (
    Block,
    Calibration,
    FitSummary,
    Frontier,
    Looks,
    Origin,
    ProbeSummary,
    Retention,
    RowCounts,
    ScratchSummary,
    Seed,
    SourceRetention,
    Spread,
    TensorCounts,
    Timing,
)
from ..runs.result_parts import CrossValidation as FoldFigures
from ..tasks import Task
from .arms import Arm
from .folds import CrossValidation
from .job import Figures, Job, ModelOutputs, figures_of
from .resolve import ScratchBudget
from .target_data import SourceData, TargetData


@dataclass(frozen=True)
class Trained:
    """The models that training gave."""

    arms: list[Arm]  # one for each seed; the first is the model that is saved
    scratch: list[Arm]  # one for each seed; empty without the scratch control
    probe: Probe | None  # None: the source has random weights
    cross: CrossValidation  # the frontier by folds, if there is no val
    fitted: bool  # False: by cross-validation the probe was better, and is the model
    scratch_how: str = ""  # learning rate of scratch, and what it was chosen by
    opened: int | None = None  # times that test was opened; None: it was not opened yet


@dataclass(frozen=True)
class EvaluationResult:
    """The result of a run, and the predictions behind it."""

    result: Result  # its timing and resumes are set when all is done
    predictions: list[Predictions]  # of each seed's model on test; the first is the model that is saved


def evaluate_all(job: Job, t: Trained, opened: int, source_opened: int) -> EvaluationResult:
    """Return metrics with intervals on val and test, controls, paired gains, retention and the verdict.

    ``opened`` and ``source_opened`` count how often test and the source's report rows were opened.
    """
    data, task, metric = job.data, job.data.task, job.data.metric
    splits, metrics = data.splits, data.metrics

    fits, ends = map(list, zip(*(both_ends(a, job.outputs.on_test) for a in t.arms), strict=True))
    scratch = [job.outputs.on_test(a.target) for a in t.scratch]
    first = fits[0]
    val = score(job.outputs.logits(t.arms[0].target, "val"), task, splits.val) if splits.val else None
    held_out = val or out_of_fold(data, t)
    controls = {task.trivial_control: constant(data, first)}
    kept = None
    if t.probe is not None:
        kept = retention(job, t, first, source_opened)
        controls["linear probe"] = probe_on_test(job.outputs, t.probe)
    if scratch:
        controls["scratch"] = scratch[0]
    pairs = list(zip(fits, scratch, strict=True)) if scratch else []
    last = look(metric, pairs) if job.looks else None
    verdict = decide(metric, pairs) if last is None else last.verdict
    gains = {name: gain(metric, first, c) for name, c in controls.items()}
    over_seeds: dict[str, Estimate | None] = {"scratch": verdict.gain if len(scratch) > 1 else None}
    if "linear probe" in controls and len(fits) >= MIN_SEEDS:
        probe_pairs = [(fit, controls["linear probe"]) for fit in fits]  # paired: there is one probe for all seeds
        over_seeds["linear probe"] = decide(metric, probe_pairs, paired=True).gain
    gains |= {name: estimate for name, estimate in over_seeds.items() if estimate is not None}
    calibration, sets, abstention = by_held_out(
        task, job.plan.evaluate, held_out, first, by="val" if val else "cross-validation"
    )
    result = Result(
        task=task.name,
        targets=task.targets,
        classes=list(task.classes),
        primary=task.primary,
        summary_metrics=[*task.summary_metrics, *task.further_metrics],
        rows=RowCounts(train=len(splits.train), val=len(splits.val), test=len(splits.test)),
        test=estimates(task, metrics, first),
        val=estimates(task, metrics, val) if val else {},
        controls={name: estimates(task, metrics, c) for name, c in controls.items()},
        gain=gains,
        gains_over_seeds=[name for name, estimate in over_seeds.items() if estimate is not None],
        verdict=verdict,
        looks=None if last is None else looks_summary(last, len(pairs)),
        test_opened=opened,
        seeds=[
            seed_line(data, job.seeds[i], arm, (fits[i], ends[i], scratch[i] if scratch else None))
            for i, arm in enumerate(t.arms)
        ],
        mean=mean_over_seeds(metrics, fits, ends, scratch),
        val_controls=val_controls(job, t) if splits.val else {},
        cross_validation=cross_validation(data, t.cross),
        frontier=frontier(job, t, fits, ends),
        retention=kept,
        calibration=calibration,
        sets=sets,
        abstention=abstention,
        fit=FitSummary(**asdict(t.arms[0].fit), fitted=t.fitted),
        probe=probe_summary(t.probe) if t.probe else None,
        scratch=scratch_summary(job.scratch, t) if t.scratch else None,
        confusion=confusion_of(first.truth.tolist(), first.scores.argmax(1).tolist(), task.outputs)
        if task.has_classes
        else None,
        slices=slice_rows(task, metrics, first, job.slices) if job.slices else None,
        source=origin(job.source, job.target.report),
        blocks=blocks(job.notes.blocks, job.target.blocks, t.arms[0].target),
        notes=[
            *splits.notes,
            *job.source.notes,
            *job.notes.source_data,
            *([t.probe.note] if t.probe and t.probe.note else []),
        ],
        timing=Timing({"total": 0.0}),
    )
    return EvaluationResult(result, fits)


def by_held_out(
    task: Task,
    plan: EvaluatePlan,
    held_out: Predictions | None,
    test: Predictions,
    *,
    by: Literal["val", "cross-validation"],
) -> tuple[Calibration | None, Sets | None, Abstention | None]:
    """Return the temperature, the sets and the accepted rows that held-out rows give; None for each that is not there.

    ``by`` says which rows are held out.
    """
    calibration = measure_calibration(task, held_out, test, by=by) if held_out and task.calibrates else None
    temperature = calibration.temperature if calibration else None
    sets, abstention = None, None
    if plan.coverage != "off" and has_sets(task):
        sets = measure_sets(task, held_out, test, plan.coverage, temperature=temperature, by=by)
    if plan.max_error is not None:
        abstention = measure_abstention(held_out, test, plan.max_error, temperature=temperature, by=by)
    return calibration, sets, abstention


def looks_summary(last: Look, seeds: int) -> Looks:
    """Return the looks of a run whose last one was after so many seeds."""
    return Looks(
        planned=LOOKS,
        taken=seeds - FIRST_LOOK + 1,
        first=FIRST_LOOK,
        most=MOST_SEEDS,
        level=level_of_look(seeds),
        ended=last.ends or "last",
    )


# ---------------------------------------------------------------- controls


def constant(data: TargetData, like: Predictions) -> Predictions:
    """Return the trivial control on the rows of ``like``: the same scores for every row."""
    scores = data.task.constant(data.targets["train"]).numpy()
    return replace(like, scores=np.broadcast_to(scores, like.scores.shape))


def probe_on_test(outputs: ModelOutputs, probe: Probe) -> Predictions:
    """Return the linear probe's predictions of test."""
    features, data = outputs.features("test"), outputs.data
    return score(replace(features, values=probe.logits(features.values)), data.task, data.splits.test)


def retention(job: Job, t: Trained, first: Predictions, opened: int) -> Retention:
    """Return the retention of the source: measured on source data, else by a proxy on the rows of test."""
    if job.source_data is not None:
        return forgetting(job.source_data, t.arms, opened)
    after = job.outputs.features_of(t.arms[0].target, "test")
    return measure_proxies(job.source, job.outputs.features("test").values, after.values, first.groups)


def probe_summary(probe: Probe) -> ProbeSummary:
    """Return the summary of the linear probe."""
    return ProbeSummary(
        strength=probe.strength,
        chosen_by=probe.chosen_by,
        rows=probe.rows,
        of=probe.of,
        passes=probe.passes,
        losses={f"{k:g}": v for k, v in probe.losses.items()},
    )


def scratch_summary(budget: ScratchBudget | None, t: Trained) -> ScratchSummary:
    """Return the summary of the scratch control."""
    return ScratchSummary(
        budget=str(budget),
        chosen=t.scratch_how,
        steps=[a.fit.steps for a in t.scratch],
        best_epochs=[a.fit.best_epoch for a in t.scratch],
    )


# ---------------------------------------------------------------- the frontier and the folds


def both_ends(arm: Arm, rows: Callable[[Target], Predictions]) -> tuple[Predictions, Predictions]:
    """Return an arm's predictions at its chosen point and at α = 1; the same object if the point is α = 1."""
    chosen = rows(arm.target)
    if not arm.end:
        return chosen, chosen
    here = snapshot(arm.target)
    restore(arm.target, arm.end)
    end = rows(arm.target)
    restore(arm.target, here)
    return chosen, end


def frontier(job: Job, t: Trained, fits: list[Predictions], ends: list[Predictions]) -> Frontier | None:
    """Return the frontier: its points (of the first seed that left the start, or over the folds), the chosen α,
    and the gain of the chosen point over α = 1 on test, paired. None if there was nothing to choose."""
    walked = [(seed, a.points) for seed, a in zip(job.seeds[: len(t.arms)], t.arms, strict=True) if a.points]
    seed, points = walked[0] if walked else (None, t.cross.points)
    if len(points) < 2:
        return None
    pairs = list(zip(fits, ends, strict=True))
    return Frontier(
        alpha=t.arms[0].alpha if t.fitted else 0.0,
        retain=job.plan.fit.retain,
        chosen_by="cross-validation" if t.cross.points else "val",
        fixed=job.plan.fit.alpha != "chosen",
        points=points,
        seed=seed,
        test_at_alpha_1=estimates(job.data.task, job.data.metrics, ends[0]),
        gain=decide(job.data.metric, pairs, paired=True).gain or gain(job.data.metric, *pairs[0]),
    )


def cross_validation(data: TargetData, cross: CrossValidation) -> FoldFigures | None:
    """Return the figures of the probe and of the fit at α = 1 over the folds of train; None without folds.

    Each row is scored by models that were not fitted on it. Intervals are over rows, as if a fold's model were
    the model: the variance between folds is not in them (Bengio and Grandvalet 2004, JMLR 5:1089).
    """
    if not cross.rows:
        return None
    fit = score(cross.rows[1.0], data.task, data.splits.train)
    probe = score(cross.rows[0.0], data.task, data.splits.train) if 0.0 in cross.rows else None
    return FoldFigures(
        folds=cross.folds,
        fit=estimates(data.task, data.metrics, fit),
        probe=estimates(data.task, data.metrics, probe) if probe else None,
        gain=gain(data.metric, fit, probe) if probe else None,
    )


def out_of_fold(data: TargetData, t: Trained) -> Predictions | None:
    """Return the predictions of train by the folds' models at the chosen point; None without folds."""
    rows = t.cross.rows.get(t.arms[0].alpha if t.fitted else 0.0)
    return None if rows is None else score(rows, data.task, data.splits.train)


def forgetting(data: SourceData, arms: list[Arm], opened: int) -> SourceRetention:
    """Return the retention on the source's report rows."""

    def report(target: Target) -> Predictions:
        return data.scored(target.model.get_submodule("backbone"), "report")

    before = data.scored(data.source.backbone, "report")
    after, ends = zip(*(both_ends(arm, report) for arm in arms), strict=True)
    return measure_retention(data.metric, data.task, before, after, ends, opened)


def val_controls(job: Job, t: Trained) -> dict[str, Figures]:
    """Return the figures of the probe on val, with which the fit's points were compared."""
    if t.probe is None:
        return {}
    if job.plan.fit.start == "probe":
        return {"linear probe": t.arms[0].fit.start}
    features = job.outputs.features("val")
    logits = replace(features, values=t.probe.logits(features.values))
    return {"linear probe": figures_of([logits], job.data.task, job.data.metric)}


def value(metric: Metric, rows: Predictions) -> float:
    """Return a metric of these rows, without an interval."""
    return value_of(metric, rows.truth, rows.scores)


def seed_line(
    data: TargetData, seed: int, arm: Arm, on_test: tuple[Predictions, Predictions, Predictions | None]
) -> Seed:
    """Return the figures of a seed; ``on_test`` are those of its chosen point, of α = 1 and of scratch."""
    chosen, end, scratch = on_test
    at_alpha = [q.figures for q in arm.points if q.alpha == arm.alpha] if data.splits.val else []
    metrics = data.metrics.items()
    return Seed(
        seed=seed,
        best_epoch=arm.fit.best_epoch,
        epochs=arm.fit.epochs,
        alpha=arm.alpha,
        val=at_alpha[0] if at_alpha else arm.fit.best,
        test={name: value(m, chosen) for name, m in metrics},
        test_at_alpha_1={name: value(m, end) for name, m in metrics},
        scratch={name: value(m, scratch) for name, m in metrics} if scratch else None,
    )


def mean_over_seeds(
    metrics: dict[str, Metric], fits: list[Predictions], ends: list[Predictions], scratch: list[Predictions]
) -> dict[str, dict[str, Spread]]:
    """Return each arm's metrics over seeds; empty for one seed."""
    if len(fits) < 2:
        return {}
    moved = any(a is not b for a, b in zip(fits, ends, strict=True))
    arms = {"fit": fits} | ({"α = 1": ends} if moved else {})
    arms |= {"scratch": scratch} if scratch else {}
    return {
        name: {
            key: Spread(mean=float(np.mean(v)), sd=float(np.std(v, ddof=1)))
            for key, metric in metrics.items()
            for v in [[value(metric, s) for s in arm]]
        }
        for name, arm in arms.items()
    }


# ---------------------------------------------------------------- weights


def blocks(table: list[Block], parts: Sequence[ModelBlock], target: Target) -> list[Block]:
    """Return each block of the plan's table with its drift: ‖θ − θs‖ ÷ ‖θs‖ over its kept parameters."""
    state = target.model.state_dict()
    rows = []
    for row, block in zip(table, parts, strict=True):
        kept = [n for n in block.tensors if n in target.anchor]
        apart = [state[n].cpu() - target.anchor[n].cpu() for n in kept]
        moved = sum(float(d.square().sum()) for d in apart)
        size = sum(float(target.anchor[n].square().sum()) for n in kept)
        rows.append(row.model_copy(update={"drift": sqrt(moved / size) if size else nan}))
    return rows


def origin(source: Source, report: Sequence[LoadedTensor]) -> Origin:
    """Return the source, and how its tensors were loaded."""
    states = Counter(t.state for t in report)
    return Origin(
        name=source.name,
        digest=source.digest,
        licence=source.licence,
        features=source.features,
        tensors=TensorCounts(
            kept=states["kept"], fresh=states["fresh"], resized=states["resized"], unused=states["unused"]
        ),
        fresh=[t.name for t in report if t.state == "fresh"],
        unused=[t.name for t in report if t.state == "unused"],
        nothing_kept=source.nothing_kept,
    )


# ---------------------------------------------------------------- predictions


def prediction_rows(data: TargetData, rows: Predictions) -> Iterator[list[Any]]:
    """Yield a header, then for each test row its id, place, truth, prediction and a score for each output."""
    names = [f"predicted {c}" if data.task.has_numbers else f"p({c})" for c in data.task.classes]
    yield ["id", "where", "label", "predicted", *names]
    progress = stage("writing predictions", len(rows))
    for example, row in progress.over(zip(data.splits.test, rows.scores, strict=True)):
        label = ";".join(example.cells)
        yield [example.id, example.where, label, data.task.label(row), *row.tolist()]
