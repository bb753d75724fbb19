"""What a run found: test opened once, every arm and control on the same rows, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import sqrt
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
from ..runs.confusion import record_of
from .arms import Arm, CrossValidation, Figures, backbone_unchanged, logits_of, source_features
from .prepare import Prepared
from .source_data import SourceData


@dataclass(frozen=True)
class Trained:
    """All that training left behind."""

    arms: list[Arm]  # a seed each; the first is the model that is saved
    scratch: list[Arm]
    probe: Probe | None
    cross: CrossValidation  # the frontier by folds, where there is no val
    fitted: bool  # False: by cross-validation the probe was better, and stands
    scratch_how: str = ""  # its rate, and by what that was chosen


@dataclass(frozen=True)
class EvaluationResult:
    result: dict[str, Any]  # result.json, less timing and status
    predictions: Predictions  # of the first seed's model on test


def evaluate_all(p: Prepared, t: Trained, opened: int, source_opened: int) -> EvaluationResult:
    """Metrics with intervals on val and test, controls, paired gains, retention and the verdict.

    ``opened`` and ``source_opened`` count how often test and the source's report rows were.
    """
    task, metric, examples = p.task, p.metric, p.splits.test

    def on_test(target: Target) -> Predictions:
        return score(logits_of(p, target, "test"), task, examples)

    fits, ends = map(list, zip(*(both_ends(a, on_test) for a in t.arms), strict=True))
    scratch = [on_test(a.target) for a in t.scratch]
    first = fits[0]
    val = None
    if p.splits.val:
        val = score(logits_of(p, t.arms[0].target, "val"), task, p.splits.val)
    constant = task.constant(p.targets["train"]).numpy()
    controls = {task.trivial_control: replace(first, scores=np.broadcast_to(constant, first.scores.shape))}
    kept: dict[str, Any] | None = None
    if t.probe is not None:
        features = source_features(p, "test")
        if p.source_data is not None:
            kept = forgetting(p, t, p.source_data) | {"opened": source_opened}
        else:
            after = features_after(p, t.arms[0].target, "test")
            kept = measure_proxies(p.source, features.values, after.values, first.groups)
        controls["linear probe"] = score(replace(features, values=t.probe.logits(features.values)), task, examples)
    if scratch:
        controls["scratch"] = scratch[0]
    verdict = decide(metric, list(zip(fits, scratch, strict=True)) if scratch else [])
    gains = {name: gain(metric, first, c) for name, c in controls.items()}
    if scratch and len(fits) > 1 and verdict.gain is not None:
        gains["scratch"] = verdict.gain  # over all seeds
    result = {
        "task": task.name,
        "classes": list(task.classes),
        "primary": task.primary,
        "rows": {s: len(getattr(p.splits, s)) for s in ("train", "val", "test")},
        "test": estimates(task, p.metrics, first),
        "val": estimates(task, p.metrics, val) if val else {},
        "controls": {name: estimates(task, p.metrics, c) for name, c in controls.items()},
        "gain": gains,
        "verdict": verdict,
        "test_opened": opened,
        "seeds": [seed_line(p, i, t, fits, ends, scratch) for i in range(len(fits))],
        "mean": mean_over_seeds(p, fits, ends, scratch),
        "val_controls": val_controls(p, t),
        "cross_validation": cross_validation(p, t.cross),
        "frontier": frontier(p, t, fits, ends),
        "retention": kept,
        "calibration": measure_calibration(task, val, first) if val and task.calibrates else None,
        "fit": asdict(t.arms[0].fit) | {"fitted": t.fitted},
        "probe": {
            "strength": t.probe.strength,
            "chosen_by": t.probe.chosen_by,
            "rows": t.probe.rows,
            "of": t.probe.of,
            "passes": t.probe.passes,
            "losses": {f"{k:g}": v for k, v in t.probe.losses.items()},
        }
        if t.probe
        else None,
        "scratch": {
            "budget": str(p.scratch),
            "chosen": t.scratch_how,
            "steps": [a.fit.steps for a in t.scratch],
            "best_epochs": [a.fit.best_epoch for a in t.scratch],
        }
        if t.scratch
        else None,
        "confusion": record_of(first.truth.tolist(), first.scores.argmax(1).tolist(), task.outputs)
        if task.has_classes
        else None,
        "source": source_record(p),
        "blocks": blocks(p, t.arms[0].target),
        "notes": [
            *p.splits.notes,
            *p.source.notes,
            *p.source_notes,
            *([t.probe.note] if t.probe and t.probe.note else []),
        ],
    }
    return EvaluationResult(result, first)


def both_ends(arm: Arm, rows: Callable[[Target], Predictions]) -> tuple[Predictions, Predictions]:
    """``rows`` of an arm at its chosen point and at α = 1; one and the same where it is there."""
    chosen = rows(arm.target)
    if not arm.end:
        return chosen, chosen
    here = snapshot(arm.target)
    restore(arm.target, arm.end)
    end = rows(arm.target)
    restore(arm.target, here)
    return chosen, end


def frontier(p: Prepared, t: Trained, fits: list[Predictions], ends: list[Predictions]) -> dict[str, Any] | None:
    """Where the line was walked: its points (of the first seed that left the start, or over the
    folds), the chosen α, and the chosen point against α = 1 on test, paired. None where there was
    nothing to choose."""
    walked = [(seed, a.points) for seed, a in zip(p.seeds, t.arms, strict=True) if a.points]
    seed, points = walked[0] if walked else (None, t.cross.points)
    if len(points) < 2:  # nothing to choose between
        return None
    pairs = list(zip(fits, ends, strict=True))
    over_seeds = decide(p.metric, pairs).gain
    return {
        "alpha": t.arms[0].alpha if t.fitted else 0.0,
        "retain": p.plan.fit.retain,
        "chosen_by": "cross-validation" if t.cross.points else "val",
        "points": points,
        "seed": seed,
        "test at alpha 1": estimates(p.task, p.metrics, ends[0]),
        "gain over alpha 1": over_seeds or gain(p.metric, *pairs[0]),
    }


def cross_validation(p: Prepared, cross: CrossValidation) -> dict[str, Any]:
    """The probe and the fit at α = 1 over the folds of train, each row judged by models that never saw
    it. Intervals are over rows, as if a fold's model were the model: how much models differ from fold
    to fold is not in them (Bengio and Grandvalet 2004, JMLR 5:1089)."""
    if not cross.rows:
        return {}
    fit = score(cross.rows[1.0], p.task, p.splits.train)
    found = {"folds": cross.folds, "fit": estimates(p.task, p.metrics, fit)}
    if 0.0 in cross.rows:
        probe = score(cross.rows[0.0], p.task, p.splits.train)
        found["linear probe"] = estimates(p.task, p.metrics, probe)
        found["gain"] = gain(p.metric, fit, probe)
    return found


def forgetting(p: Prepared, t: Trained, data: SourceData) -> dict[str, Any]:
    """``retention`` of result.json from source data: the report rows, before and after."""

    def report(target: Target) -> Predictions:
        return data.scored(target.model.get_submodule("backbone"), "report")

    before = data.scored(p.source.backbone, "report")
    after, ends = zip(*(both_ends(arm, report) for arm in t.arms), strict=True)
    return measure_retention(data.metric, data.task, before, after, ends)


def features_after(p: Prepared, target: Target, split: str) -> Outputs:
    if backbone_unchanged(p, target):
        return source_features(p, split)
    backbone = target.model.get_submodule("backbone")
    return outputs(backbone, p.batches(split), p.compute)


def val_controls(p: Prepared, t: Trained) -> dict[str, Figures]:
    """The starting point on val: what the best epoch was compared with."""
    return {"linear probe": t.arms[0].fit.start} if p.splits.val and t.probe is not None else {}


def value(p: Prepared, name: str, rows: Predictions) -> float:
    return float(p.metrics[name].value(rows.truth, rows.scores, np.ones((1, len(rows))))[0])


def seed_line(
    p: Prepared, i: int, t: Trained, fits: list[Predictions], ends: list[Predictions], scratch: list[Predictions]
) -> dict[str, Any]:
    arm = t.arms[i]
    fit = arm.fit
    at_alpha = [q.figures for q in arm.points if q.alpha == arm.alpha] if p.splits.val else []
    return {
        "seed": p.seeds[i],
        "best_epoch": fit.best_epoch,
        "epochs": fit.epochs,
        "alpha": arm.alpha,
        "val": at_alpha[0] if at_alpha else fit.best,
        "test": {m: value(p, m, fits[i]) for m in p.metrics},
        "test at alpha 1": {m: value(p, m, ends[i]) for m in p.metrics},
        "scratch": {m: value(p, m, scratch[i]) for m in p.metrics} if scratch else None,
    }


def mean_over_seeds(
    p: Prepared, fits: list[Predictions], ends: list[Predictions], scratch: list[Predictions]
) -> dict[str, dict[str, dict[str, float]]]:
    """Each arm's metrics over seeds: mean and standard deviation (S − 1); empty for one seed."""
    if len(fits) < 2:
        return {}
    moved = any(a is not b for a, b in zip(fits, ends, strict=True))
    arms = {"fit": fits} | ({"α = 1": ends} if moved else {})
    arms |= {"scratch": scratch} if scratch else {}
    return {
        name: {
            m: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1))}
            for m in p.metrics
            for v in [[value(p, m, s) for s in arm]]
        }
        for name, arm in arms.items()
    }


def blocks(p: Prepared, target: Target) -> list[dict[str, Any]]:
    """The plan's table, and how far each block moved: ‖θ − θs‖ ÷ ‖θs‖ over its kept parameters."""
    state = target.model.state_dict()
    found = []
    for row, block in zip(p.table, p.target.blocks, strict=True):
        kept = [n for n in block.tensors if n in target.anchor]
        apart = [state[n].cpu() - target.anchor[n].cpu() for n in kept]
        moved = sum(float(d.square().sum()) for d in apart)
        size = sum(float(target.anchor[n].square().sum()) for n in kept)
        found.append(asdict(row) | {"drift": sqrt(moved / size) if size else None})
    return found


def source_record(p: Prepared) -> dict[str, Any]:
    """What was loaded, counted over the backbone's tensors."""
    states = Counter(t.state for t in p.target.report)
    named = {s: [t.name for t in p.target.report if t.state == s] for s in ("fresh", "unused")}
    return {
        "name": p.source.name,
        "digest": p.source.digest,
        "licence": p.source.licence,
        "features": p.source.features,
        "tensors": {s: states.get(s, 0) for s in ("kept", "fresh", "resized", "unused")},
        **named,
        "nothing_kept": p.source.nothing_kept,
    }


def prediction_rows(p: Prepared, rows: Predictions) -> Iterator[list[Any]]:
    """Header, then a line a test row: id, where, truth, prediction, a score an output."""
    names = [f"predicted {c}" if p.task.has_numbers else f"p({c})" for c in p.task.classes]
    yield ["id", "where", "label", "predicted", *names]
    seen = stage("writing predictions", len(rows))
    for example, row in seen.over(zip(p.splits.test, rows.scores, strict=True)):
        label = ";".join(example.cells)
        yield [example.id, example.where, label, p.task.label(row), *row.tolist()]
