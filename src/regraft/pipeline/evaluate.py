"""The evaluation of a run: test opened once, every arm and control on the same rows, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import nan, sqrt
from typing import Any

import numpy as np

from ..evidence.calibration import measure_calibration
from ..evidence.linear_probe import Probe
from ..evidence.retention import measure_proxies, measure_retention
from ..evidence.scoring import Predictions, estimates, gain, score
from ..evidence.verdict import decide
from ..io.progress import stage
from ..model.forward import Outputs, outputs
from ..model.types import Target
from ..model.weights import restore, snapshot
from ..runs.confusion import confusion_of
from ..runs.result import Result
from ..runs.result_parts import (
    Block,
    FitSummary,
    Frontier,
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
from .arms import Arm, CrossValidation, Figures, backbone_unchanged, logits_of, source_features
from .prepare import Prepared
from .source_data import SourceData


@dataclass(frozen=True)
class Trained:
    """The models that training gave."""

    arms: list[Arm]  # one for each seed; the first is the model that is saved
    scratch: list[Arm]  # one for each seed; empty without the scratch control
    probe: Probe | None  # None: the source has random weights
    cross: CrossValidation  # the frontier by folds, if there is no val
    fitted: bool  # False: by cross-validation the probe was better, and is the model
    scratch_how: str = ""  # learning rate of scratch, and what it was chosen by


@dataclass(frozen=True)
class EvaluationResult:
    """The result of a run, and the predictions behind it."""

    result: Result  # its timing and resumes are set when all is done
    predictions: Predictions  # of the first seed's model on test


def evaluate_all(p: Prepared, t: Trained, opened: int, source_opened: int) -> EvaluationResult:
    """Return metrics with intervals on val and test, controls, paired gains, retention and the verdict.

    ``opened`` and ``source_opened`` count how often test and the source's report rows were opened.
    """
    task, metric, examples = p.task, p.metric, p.splits.test

    def on_test(target: Target) -> Predictions:
        return score(logits_of(p, target, "test"), task, examples)

    fits, ends = map(list, zip(*(both_ends(a, on_test) for a in t.arms), strict=True))
    scratch = [on_test(a.target) for a in t.scratch]
    first = fits[0]
    val = score(logits_of(p, t.arms[0].target, "val"), task, p.splits.val) if p.splits.val else None
    controls = {task.trivial_control: constant(p, first)}
    kept = None
    if t.probe is not None:
        kept = retention(p, t, first, source_opened)
        controls["linear probe"] = probe_on_test(p, t.probe)
    if scratch:
        controls["scratch"] = scratch[0]
    verdict = decide(metric, list(zip(fits, scratch, strict=True)) if scratch else [])
    gains = {name: gain(metric, first, c) for name, c in controls.items()}
    if len(scratch) > 1 and verdict.gain is not None:
        gains["scratch"] = verdict.gain  # over all seeds
    result = Result(
        task=task.name,
        targets=task.targets,
        classes=list(task.classes),
        primary=task.primary,
        summary_metrics=[*task.summary_metrics, *task.further_metrics],
        rows=RowCounts(train=len(p.splits.train), val=len(p.splits.val), test=len(p.splits.test)),
        test=estimates(task, p.metrics, first),
        val=estimates(task, p.metrics, val) if val else {},
        controls={name: estimates(task, p.metrics, c) for name, c in controls.items()},
        gain=gains,
        verdict=verdict,
        test_opened=opened,
        seeds=[seed_line(p, i, t, fits, ends, scratch) for i in range(len(fits))],
        mean=mean_over_seeds(p, fits, ends, scratch),
        val_controls=val_controls(p, t),
        cross_validation=cross_validation(p, t.cross),
        frontier=frontier(p, t, fits, ends),
        retention=kept,
        calibration=measure_calibration(task, val, first) if val and task.calibrates else None,
        fit=FitSummary(**asdict(t.arms[0].fit), fitted=t.fitted),
        probe=probe_summary(t.probe) if t.probe else None,
        scratch=scratch_summary(p, t) if t.scratch else None,
        confusion=confusion_of(first.truth.tolist(), first.scores.argmax(1).tolist(), task.outputs)
        if task.has_classes
        else None,
        source=origin(p),
        blocks=blocks(p, t.arms[0].target),
        notes=[
            *p.splits.notes,
            *p.source.notes,
            *p.source_notes,
            *([t.probe.note] if t.probe and t.probe.note else []),
        ],
        timing=Timing({"total": 0.0}),
    )
    return EvaluationResult(result, first)


# ---------------------------------------------------------------- controls


def constant(p: Prepared, like: Predictions) -> Predictions:
    """Return the trivial control on the rows of ``like``: the same scores for every row."""
    scores = p.task.constant(p.targets["train"]).numpy()
    return replace(like, scores=np.broadcast_to(scores, like.scores.shape))


def probe_on_test(p: Prepared, probe: Probe) -> Predictions:
    """Return the linear probe's predictions of test."""
    features = source_features(p, "test")
    return score(replace(features, values=probe.logits(features.values)), p.task, p.splits.test)


def retention(p: Prepared, t: Trained, first: Predictions, opened: int) -> Retention:
    """Return the retention of the source: measured on source data, else by a proxy on the rows of test."""
    if p.source_data is not None:
        return forgetting(p, t, p.source_data, opened)
    after = features_after(p, t.arms[0].target, "test")
    return measure_proxies(p.source, source_features(p, "test").values, after.values, first.groups)


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


def scratch_summary(p: Prepared, t: Trained) -> ScratchSummary:
    """Return the summary of the scratch control."""
    return ScratchSummary(
        budget=str(p.scratch),
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


def frontier(p: Prepared, t: Trained, fits: list[Predictions], ends: list[Predictions]) -> Frontier | None:
    """Return the frontier: its points (of the first seed that left the start, or over the folds), the chosen α,
    and the gain of the chosen point over α = 1 on test, paired. None if there was nothing to choose."""
    walked = [(seed, a.points) for seed, a in zip(p.seeds, t.arms, strict=True) if a.points]
    seed, points = walked[0] if walked else (None, t.cross.points)
    if len(points) < 2:
        return None
    pairs = list(zip(fits, ends, strict=True))
    return Frontier(
        alpha=t.arms[0].alpha if t.fitted else 0.0,
        retain=p.plan.fit.retain,
        chosen_by="cross-validation" if t.cross.points else "val",
        points=points,
        seed=seed,
        test_at_alpha_1=estimates(p.task, p.metrics, ends[0]),
        gain=decide(p.metric, pairs).gain or gain(p.metric, *pairs[0]),
    )


def cross_validation(p: Prepared, cross: CrossValidation) -> FoldFigures | None:
    """Return the figures of the probe and of the fit at α = 1 over the folds of train; None without folds.

    Each row is scored by models that were not fitted on it. Intervals are over rows, as if a fold's model were
    the model: the variance between folds is not in them (Bengio and Grandvalet 2004, JMLR 5:1089).
    """
    if not cross.rows:
        return None
    fit = score(cross.rows[1.0], p.task, p.splits.train)
    probe = score(cross.rows[0.0], p.task, p.splits.train) if 0.0 in cross.rows else None
    return FoldFigures(
        folds=cross.folds,
        fit=estimates(p.task, p.metrics, fit),
        probe=estimates(p.task, p.metrics, probe) if probe else None,
        gain=gain(p.metric, fit, probe) if probe else None,
    )


def forgetting(p: Prepared, t: Trained, data: SourceData, opened: int) -> SourceRetention:
    """Return the retention on the source's report rows."""

    def report(target: Target) -> Predictions:
        return data.scored(target.model.get_submodule("backbone"), "report")

    before = data.scored(p.source.backbone, "report")
    after, ends = zip(*(both_ends(arm, report) for arm in t.arms), strict=True)
    return measure_retention(data.metric, data.task, before, after, ends, opened)


def features_after(p: Prepared, target: Target, split: str) -> Outputs:
    """Return the features of a split by the fitted backbone."""
    if backbone_unchanged(p, target):
        return source_features(p, split)
    backbone = target.model.get_submodule("backbone")
    return outputs(backbone, p.batches(split), p.compute)


def val_controls(p: Prepared, t: Trained) -> dict[str, Figures]:
    """Return the figures of the starting point on val, which the best epoch was compared with."""
    return {"linear probe": t.arms[0].fit.start} if p.splits.val and t.probe is not None else {}


def value(p: Prepared, name: str, rows: Predictions) -> float:
    """Return a metric of these rows, without an interval."""
    return float(p.metrics[name].value(rows.truth, rows.scores, np.ones((1, len(rows))))[0])


def seed_line(
    p: Prepared, i: int, t: Trained, fits: list[Predictions], ends: list[Predictions], scratch: list[Predictions]
) -> Seed:
    """Return the figures of the seed with this index."""
    arm = t.arms[i]
    fit = arm.fit
    at_alpha = [q.figures for q in arm.points if q.alpha == arm.alpha] if p.splits.val else []
    return Seed(
        seed=p.seeds[i],
        best_epoch=fit.best_epoch,
        epochs=fit.epochs,
        alpha=arm.alpha,
        val=at_alpha[0] if at_alpha else fit.best,
        test={m: value(p, m, fits[i]) for m in p.metrics},
        test_at_alpha_1={m: value(p, m, ends[i]) for m in p.metrics},
        scratch={m: value(p, m, scratch[i]) for m in p.metrics} if scratch else None,
    )


def mean_over_seeds(
    p: Prepared, fits: list[Predictions], ends: list[Predictions], scratch: list[Predictions]
) -> dict[str, dict[str, Spread]]:
    """Return each arm's metrics over seeds; empty for one seed."""
    if len(fits) < 2:
        return {}
    moved = any(a is not b for a, b in zip(fits, ends, strict=True))
    arms = {"fit": fits} | ({"α = 1": ends} if moved else {})
    arms |= {"scratch": scratch} if scratch else {}
    return {
        name: {
            m: Spread(mean=float(np.mean(v)), sd=float(np.std(v, ddof=1)))
            for m in p.metrics
            for v in [[value(p, m, s) for s in arm]]
        }
        for name, arm in arms.items()
    }


# ---------------------------------------------------------------- weights


def blocks(p: Prepared, target: Target) -> list[Block]:
    """Return each block of the plan's table with its drift: ‖θ − θs‖ ÷ ‖θs‖ over its kept parameters."""
    state = target.model.state_dict()
    rows = []
    for row, block in zip(p.table, p.target.blocks, strict=True):
        kept = [n for n in block.tensors if n in target.anchor]
        apart = [state[n].cpu() - target.anchor[n].cpu() for n in kept]
        moved = sum(float(d.square().sum()) for d in apart)
        size = sum(float(target.anchor[n].square().sum()) for n in kept)
        rows.append(Block(**asdict(row), drift=sqrt(moved / size) if size else nan))
    return rows


def origin(p: Prepared) -> Origin:
    """Return the source, and how its tensors were loaded."""
    states = Counter(t.state for t in p.target.report)
    return Origin(
        name=p.source.name,
        digest=p.source.digest,
        licence=p.source.licence,
        features=p.source.features,
        tensors=TensorCounts(
            kept=states["kept"], fresh=states["fresh"], resized=states["resized"], unused=states["unused"]
        ),
        fresh=[t.name for t in p.target.report if t.state == "fresh"],
        unused=[t.name for t in p.target.report if t.state == "unused"],
        nothing_kept=p.source.nothing_kept,
    )


# ---------------------------------------------------------------- predictions


def prediction_rows(p: Prepared, rows: Predictions) -> Iterator[list[Any]]:
    """Yield a header, then for each test row its id, place, truth, prediction and a score for each output."""
    names = [f"predicted {c}" if p.task.has_numbers else f"p({c})" for c in p.task.classes]
    yield ["id", "where", "label", "predicted", *names]
    progress = stage("writing predictions", len(rows))
    for example, row in progress.over(zip(p.splits.test, rows.scores, strict=True)):
        label = ";".join(example.cells)
        yield [example.id, example.where, label, p.task.label(row), *row.tolist()]
