"""Learning curve: is it worth labelling more? Metric against the number of labels, on folds of train.

Of each fold's training rows n a class are taken (n rows in all for numbers), nested: the rows of a
smaller n are among those of a larger one. On them the probe, the fit from it and, where the plan names
the control, the same network from scratch are fitted, and judged on the fold's other rows. Val and test
are not looked at.

The band is mean ± t · sd ÷ √k over k folds, t with k − 1 degrees of freedom. Folds share training rows,
so it is too narrow as an interval for new data (Bengio and Grandvalet 2004); it shows the scatter.
Fits are taken at α = 1: there are no rows left to choose by. Scratch's rate is the best over the folds
at each n, and so is whether it has the fit's moving average and the like, which is kind to scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compute.malloc import freed_memory_kept
from ..data.columns import ids_of, some_of
from ..data.ordering import order
from ..errors import DataError, DivergedError, PlanError, UsageError
from ..evidence.linear_probe import fit_probe
from ..io.progress import reporting
from ..model import reinitialise
from ..model.forward import Outputs, outputs
from ..model.types import Source
from ..pipeline import scratch_search
from ..pipeline.arms import figures_of, fit_rows, initial_target, logits_of
from ..pipeline.prepare import Prepared, prepare
from ..pipeline.resolve import resolve, scratch_budget, settings
from ..plan.schema import Plan
from ..runs.folder import RunFolder, check_new

if TYPE_CHECKING:
    from ..training.settings import Settings


@dataclass(frozen=True)
class CurvePoint:
    """One arm at one number of labels, over folds."""

    arm: str  # "linear probe", "fit" or "scratch"
    labels: int  # a class, or in all for numbers
    rows: int  # training rows of a fold, on average
    mean: float
    low: float
    high: float
    folds: tuple[float, ...]


@freed_memory_kept()
def curve(plan: Plan, labels: Sequence[int], *, say: Callable[[str], None] = lambda line: None) -> Path:
    """Fit and judge at every number of labels, and write ``curve.json`` and ``curve.png``.

    Raises UsageError for numbers that make no sense, PlanError for a source without transfer and
    DataError where a fold has too few rows.
    """
    if plan.run.out is None:
        raise UsageError("say where the curve goes: --out runs/NAME")
    if not labels or min(labels) < 1:
        raise UsageError("say at how many labels: --labels 3 --labels 10")
    out = Path(plan.run.out)
    check_new(out)
    p = prepare(plan)
    if p.source.nothing_kept:
        raise PlanError([f"a curve compares a source with scratch, and {p.source.name} keeps nothing"])
    folds = p.folds()
    if not folds:
        raise DataError(f"{plan.data.path} has a class with a single training row: no folds")
    counts = sorted(set(labels))
    taken = {(f, n): rows_of(p, fit, n) for f, (fit, _) in enumerate(folds) for n in counts}
    with RunFolder(out) as folder, reporting(say):
        features = outputs(p.source.backbone.to(p.compute.device), p.batches("train"), p.compute)
        points: list[CurvePoint] = []
        for n in counts:
            parts = [(taken[f, n], judged) for f, (_, judged) in enumerate(folds)]
            points += at(p, plan, n, parts, features, say)
            say(f"{n} labels: {len(folds)} folds done")
        unit = "labels a class" if p.task.has_classes else "labelled rows"
        record = {
            "primary": p.task.primary,
            "unit": unit,
            "folds": len(folds),
            "points": points,
            "answer": answer(points, p.metric.higher_is_better),
            "plan": p.plan.model_dump(exclude_none=True),
        }
        folder.json("curve.json", record)
        draw([asdict(q) for q in points], p.task.primary, unit, out / "curve.png")
    return out


def rows_of(p: Prepared, rows: Sequence[int], n: int) -> list[int]:
    """n rows of each class, or n rows of numbers and label sets; always the first in one order."""
    ids = list(ids_of(some_of(p.splits.train, rows)))
    ranked = [rows[k] for k in order(ids, p.plan.run.seed, 0)]
    if not p.task.has_classes:
        if len(ranked) < n:
            raise DataError(f"--labels {n}: a fold of train has {len(ranked)} rows")
        return ranked[:n]
    members: dict[str, list[int]] = {name: [] for name in p.task.classes}
    for i in ranked:
        members[p.strata[i]].append(i)
    chosen = []
    for name, own in members.items():
        if len(own) < n:
            raise DataError(f'--labels {n}: a fold of train has {len(own)} rows of "{name}"')
        chosen += own[:n]
    return chosen


def at(
    p: Prepared,
    plan: Plan,
    n: int,
    parts: Sequence[tuple[list[int], list[int]]],
    features: Outputs,
    say: Callable[[str], None],
) -> list[CurvePoint]:
    """Every arm at one number of labels, with the settings that a fit on so many rows would have."""
    rows = round(float(np.mean([len(fit) for fit, _ in parts])))
    timed = plan.model_copy(update={"run": p.plan.run})
    resolved, _ = resolve(timed, p.source, rows, has_val=False)
    q = replace(p, plan=resolved, settings=settings(resolved, p.target))
    found: dict[str, list[float]] = {"linear probe": [], "fit": []}
    for f, (fit, judged) in enumerate(parts):
        inner = features.take(fit)
        chosen = q.plan.probe
        probe = fit_probe(inner, q.task, chosen.strengths, folds=q.folds(fit), most=chosen.rows)
        some = features.take(judged)
        figures = figures_of(q, [replace(some, values=probe.logits(some.values))])
        found["linear probe"].append(figures[q.task.primary])
        target = initial_target(q, q.source, q.seeds[0] + f, probe)
        fit_rows(q, target, q.settings, q.seeds[0] + f, rows=fit)
        found["fit"].append(value(q, target, judged))
    if p.scratch is not None:
        budget = scratch_budget(resolved, q.settings, has_val=False)
        sign = 1 if p.metric.higher_is_better else -1
        lost = [-sign * np.inf] * len(parts)

        def tried(every: dict[str, Settings]) -> dict[str, list[float]]:
            fitted = {}
            for name, chosen in every.items():
                try:
                    fitted[name] = from_scratch(q, chosen, parts)
                except DivergedError as error:
                    say(f"scratch {name} is out at {n} labels: {error}")
                    fitted[name] = lost
            return fitted

        _, _, found["scratch"] = scratch_search.search(
            q.settings, budget, tried, lambda a, b: sign * float(np.mean(a)) > sign * float(np.mean(b)), lost
        )
    return [point(arm, n, rows, values) for arm, values in found.items()]


def from_scratch(p: Prepared, chosen: Settings, parts: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    found = []
    for f, (fit, judged) in enumerate(parts):
        source: Source = reinitialise.untrained(p.source, p.seeds[0] + f)
        target = initial_target(p, source, p.seeds[0] + f, None)
        fit_rows(p, target, chosen, p.seeds[0] + f, rows=fit)
        found.append(value(p, target, judged))
    return found


def value(p: Prepared, target: Any, rows: Sequence[int]) -> float:
    return figures_of(p, [logits_of(p, target, "train", rows)])[p.task.primary]


def point(arm: str, n: int, rows: int, values: Sequence[float]) -> CurvePoint:
    from scipy.stats import t

    k, mean = len(values), float(np.mean(values))
    half = float(t.ppf(0.975, k - 1) * np.std(values, ddof=1) / np.sqrt(k))
    return CurvePoint(arm, n, rows, mean, mean - half, mean + half, tuple(map(float, values)))


def answer(points: Sequence[CurvePoint], higher_is_better: bool) -> str:
    """One sentence: whether the last step of labels still moved the fit, beyond the folds' scatter."""
    fits = [q for q in points if q.arm == "fit"]
    if len(fits) < 2:
        return "one number of labels says nothing about more of them"
    before, last = fits[-2], fits[-1]
    steps = np.array(last.folds) - np.array(before.folds)
    gained = point("fit", last.labels, last.rows, steps if higher_is_better else -steps)
    moved = f"{gained.mean:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]"
    text = f"from {before.labels} to {last.labels} labels the fit is better by {moved}"
    if gained.low > 0:
        return f"more labels are likely to help: {text}"
    return f"no sign that more labels help: {text}"


def in_words(record: dict[str, Any]) -> str:
    """The curve as lines for the terminal, and its answer."""
    lines = [f"{record['primary']} on {record['folds']} folds of train, with a band of their scatter"]
    for q in record["points"]:
        band = f"{q['mean']:.3f} [{q['low']:.3f}, {q['high']:.3f}]"
        lines.append(f"{q['labels']:>6} labels   {q['arm']:<12}   {band}")
    return "\n".join([*lines, record["answer"]])


def draw(points: Sequence[dict[str, Any]], primary: str, unit: str, path: Path) -> None:
    """Lines with bands over labels, on a log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm in dict.fromkeys(q["arm"] for q in points):
        own = [q for q in points if q["arm"] == arm]
        x = [q["labels"] for q in own]
        (line,) = axes.plot(x, [q["mean"] for q in own], marker="o", label=arm)
        axes.fill_between(x, [q["low"] for q in own], [q["high"] for q in own], color=line.get_color(), alpha=0.15)
    axes.set_xscale("log")
    axes.set_xticks(sorted({q["labels"] for q in points}), labels=sorted({str(q["labels"]) for q in points}, key=int))
    axes.minorticks_off()
    axes.set_xlabel(unit)
    axes.set_ylabel(primary)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
