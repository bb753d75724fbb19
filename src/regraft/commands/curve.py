"""Learning curve: is it worth labelling more? Metric against the number of labels, on folds of train.

Of each fold's training rows n a class are taken (n rows in all for numbers), nested: the rows of a
smaller n are among those of a larger one. On them the probe, the fit from it and, where the plan names
the control, the same network from scratch are fitted, and judged on the fold's other rows. Val and test
are not looked at.

The band is mean ± t · sd ÷ √k over k folds, t with k − 1 degrees of freedom. Folds share training rows,
so it is too narrow as an interval for new data (Bengio and Grandvalet 2004); it shows the scatter.
From four numbers of labels on, the curve of the fit is extrapolated to twice and four times the largest, as a range
(see evidence/extrapolation.py). Fits are taken at α = 1: there are no rows left to choose by. Scratch's rate is the
best over the folds at each n, and so is whether it has the fit's moving average and the like, which is kind to scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compute.malloc import freed_memory_kept
from ..data.columns import ids_of, some_of
from ..data.ordering import order
from ..errors import DataError, DivergedError, PlanError, UsageError
from ..evidence.extrapolation import FACTORS, MIN_SIZES, extrapolate
from ..evidence.linear_probe import Fold
from ..io.log import LOGGER
from ..metrics import Metric
from ..model import reinitialise
from ..model.forward import Outputs, outputs
from ..model.types import Target
from ..pipeline.arms import ArmFitter
from ..pipeline.job import Job, figures_of, fit_linear_probe
from ..pipeline.prepare import prepare
from ..pipeline.resolve import ScratchBudget, resolve, scratch_budget, settings
from ..pipeline.scratch import search
from ..pipeline.target_data import TargetData
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
def curve(plan: Plan, labels: Sequence[int]) -> Path:
    """Fit and score at every number of labels, and write ``curve.json`` and ``curve.png``.

    Raises UsageError for numbers that make no sense, PlanError for a source without transfer and
    DataError where a fold has too few rows.
    """
    if plan.run.out is None:
        raise UsageError("say where the curve goes: --out runs/NAME")
    if not labels or min(labels) < 1:
        raise UsageError("say at how many labels: --labels 3 --labels 10")
    out = Path(plan.run.out)
    check_new(out)
    job = prepare(plan)
    data = job.data
    if job.source.nothing_kept:
        raise PlanError([f"a curve compares a source with scratch, and {job.source.name} keeps nothing"])
    folds = data.folds()
    if not folds:
        raise DataError(f"{plan.data.path} has a class with a single training row: no folds")
    counts = sorted(set(labels))
    seed = job.plan.run.seed
    chosen = {(f, n): rows_of(data, fit, n, seed) for f, (fit, _) in enumerate(folds) for n in counts}
    with RunFolder(out) as folder:
        features = outputs(job.source.backbone.to(job.compute.device), data.batches("train"), job.compute)
        points: list[CurvePoint] = []
        for n in counts:
            parts = [(chosen[f, n], others) for f, (_, others) in enumerate(folds)]
            rows = round(float(np.mean([len(fit) for fit, _ in parts])))
            points += CurveFits(with_rows(job, plan, rows), n, parts).points(features, rows)
            LOGGER.info("%d labels: %d folds done", n, len(folds))
        unit = "labels a class" if data.task.has_classes else "labelled rows"
        more = more_labels(points, data.metric)
        record = {
            "primary": data.task.primary,
            "unit": unit,
            "folds": len(folds),
            "points": points,
            "more_labels": more,
            "answer": answer(points, data.metric.higher_is_better),
            "plan": job.plan.model_dump(exclude_none=True),
        }
        folder.json("curve.json", record)
        draw([asdict(q) for q in points], more, data.task.primary, unit, out / "curve.png")
    return out


def rows_of(data: TargetData, rows: Sequence[int], n: int, seed: int) -> list[int]:
    """Return n rows of each class, or n rows of numbers and label sets; always the first in one order."""
    ids = list(ids_of(some_of(data.splits.train, rows)))
    ranked = [rows[k] for k in order(ids, seed, 0)]
    if not data.task.has_classes:
        if len(ranked) < n:
            raise DataError(f"--labels {n}: a fold of train has {len(ranked)} rows")
        return ranked[:n]
    members: dict[str, list[int]] = {name: [] for name in data.task.classes}
    for i in ranked:
        members[data.strata[i]].append(i)
    for name, own in members.items():
        if len(own) < n:
            raise DataError(f'--labels {n}: a fold of train has {len(own)} rows of "{name}"')
    return [i for own in members.values() for i in own[:n]]


def with_rows(job: Job, plan: Plan, rows: int) -> Job:
    """Return the job with the settings that a fit on so many rows would have."""
    timed = plan.model_copy(update={"run": job.plan.run})
    resolved, _ = resolve(timed, job.source, rows, has_val=False, one_class=job.data.task.calibrates)
    chosen = settings(resolved, job.target)
    loading = replace(job.data.loading, batch_size=resolved.fit.batch_size)
    scratch = None if job.scratch is None else scratch_budget(resolved, chosen, has_val=False)
    return replace(
        job,
        plan=resolved,
        data=replace(job.data, loading=loading),
        spec=replace(job.spec, settings=chosen),
        scratch=scratch,
    )


@dataclass(frozen=True)
class CurveFits:
    """The fits at one number of labels."""

    job: Job  # with the settings that a fit on so many rows would have
    labels: int
    parts: Sequence[Fold]

    def points(self, features: Outputs, rows: int) -> list[CurvePoint]:
        """Return every arm; a fold has ``rows`` training rows on average."""
        data = self.job.data
        figures: dict[str, list[float]] = {"linear probe": [], "fit": []}
        for f, (fit, others) in enumerate(self.parts):
            probe = fit_linear_probe({"train": features}, data, self.job.plan.probe, fit)
            some = features.take(others)
            figures["linear probe"].append(self.value(replace(some, values=probe.logits(some.values))))
            seed = self.job.seeds[0] + f
            target = self.job.initial_target(self.job.source, seed, probe)
            figures["fit"].append(self.fitted(target, self.job.spec.settings, seed, (fit, others)))
        if self.job.scratch is not None:
            figures["scratch"] = self.best_scratch(self.job.scratch)
        bounded = data.metric.bounded
        return [point(arm, self.labels, rows, values, bounded=bounded) for arm, values in figures.items()]

    def best_scratch(self, budget: ScratchBudget) -> list[float]:
        """Return the figures of scratch on the folds, with the settings that are best over them."""
        sign = 1 if self.job.data.metric.higher_is_better else -1
        lost = [-sign * np.inf] * len(self.parts)

        def better(a: list[float], b: list[float]) -> bool:
            return sign * float(np.mean(a)) > sign * float(np.mean(b))

        def tried(every: dict[str, Settings]) -> dict[str, list[float]]:
            fitted = {}
            for name, chosen in every.items():
                try:
                    fitted[name] = self.scratch(chosen)
                except DivergedError as error:
                    LOGGER.info("scratch %s is out at %d labels: %s", name, self.labels, error)
                    fitted[name] = lost
            return fitted

        _, _, best = search(self.job.spec.settings, budget, tried, better, lost)
        return best

    def scratch(self, settings: Settings) -> list[float]:
        """Return the figure of scratch on each fold."""
        figures = []
        for f, fold in enumerate(self.parts):
            seed = self.job.seeds[0] + f
            target = self.job.initial_target(reinitialise.untrained(self.job.source, seed), seed)
            figures.append(self.fitted(target, settings, seed, fold))
        return figures

    def fitted(self, target: Target, settings: Settings, seed: int, fold: Fold) -> float:
        """Fit a target on a fold's rows, and return the figure of its others."""
        fit, others = fold
        ArmFitter(self.job).fit_rows(target, settings, seed, rows=fit)
        return self.value(self.job.outputs.logits(target, "train", others))

    def value(self, logits: Outputs) -> float:
        """Return the primary metric."""
        data = self.job.data
        return figures_of([logits], data.task, data.metric)[data.task.primary]


def point(arm: str, n: int, rows: int, values: Sequence[float], *, bounded: bool = False) -> CurvePoint:
    """Return an arm's mean over folds with its band; that of a ``bounded`` metric stays within 0 and 1."""
    from scipy.stats import t

    k, mean = len(values), float(np.mean(values))
    half = float(t.ppf(0.975, k - 1) * np.std(values, ddof=1) / np.sqrt(k))
    low, high = mean - half, mean + half
    if bounded:
        low, high = max(low, 0.0), min(high, 1.0)
    return CurvePoint(arm, n, rows, mean, low, high, tuple(map(float, values)))


def more_labels(points: Sequence[CurvePoint], metric: Metric) -> list[dict[str, Any]]:
    """Return the range of the fit's metric at more labels; none where the sizes, or the metric, allow no such range."""
    fits = [q for q in points if q.arm == "fit"]
    values = np.array([q.folds for q in fits])
    if len(fits) < MIN_SIZES or not (metric.bounded or not metric.higher_is_better):
        return []
    errors = 1 - values if metric.higher_is_better else values
    found = extrapolate([q.labels for q in fits], errors) if (errors >= 0).all() else []
    if metric.higher_is_better:
        return [{"labels": r.labels, "low": 1 - min(r.high, 1.0), "high": 1 - r.low} for r in found]
    return [{"labels": r.labels, "low": r.low, "high": min(r.high, 1.0) if metric.bounded else r.high} for r in found]


def answer(points: Sequence[CurvePoint], higher_is_better: bool) -> str:
    """Return one sentence: whether more labels still moved the fit, beyond the scatter of the folds."""
    fits = [q for q in points if q.arm == "fit"]
    if len(fits) < 2:
        return "one number of labels cannot show whether more would help: give --labels again"
    before, last = fits[-2], fits[-1]
    steps = np.array(last.folds) - np.array(before.folds)
    gained = point("fit", last.labels, last.rows, steps if higher_is_better else -steps)
    moved = f"{gained.mean:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]"
    text = f"from {before.labels} to {last.labels} labels the fit is better by {moved}"
    if gained.low > 0:
        return f"more labels are likely to help: {text}"
    return f"no sign that more labels help: {text}"


def in_words(record: dict[str, Any]) -> str:
    """Return the curve as lines for the terminal, and its answer."""
    lines = [f"{record['primary']} on {record['folds']} folds of train, with a band of their scatter"]
    for q in record["points"]:
        band = f"{q['mean']:.3f} [{q['low']:.3f}, {q['high']:.3f}]"
        lines.append(f"{q['labels']:>6} labels   {q['arm']:<12}   {band}")
    for q in record["more_labels"]:
        lines.append(f"{q['labels']:>6} labels   fit, not seen   {q['low']:.3f} to {q['high']:.3f}")
    if record["more_labels"]:
        lines.append(
            "What was not seen is a range (95 %) for a curve that goes on as a power law with an unknown floor."
        )
    elif len({q["labels"] for q in record["points"]}) < MIN_SIZES:
        times = " and ".join(map(str, FACTORS))
        lines.append(f"With {MIN_SIZES} numbers of labels or more, a range for {times} times the largest is given too.")
    return "\n".join([*lines, record["answer"]])


def draw(points: Sequence[dict[str, Any]], more: Sequence[dict[str, Any]], primary: str, unit: str, path: Path) -> None:
    """Draw lines with bands over the number of labels, on a log axis, and ranges for ``more`` labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm in dict.fromkeys(q["arm"] for q in points):
        own = [q for q in points if q["arm"] == arm]
        x = [q["labels"] for q in own]
        (line,) = axes.plot(x, [q["mean"] for q in own], marker="o", label=arm)
        axes.fill_between(x, [q["low"] for q in own], [q["high"] for q in own], color=line.get_color(), alpha=0.15)
    for q in more:
        label = "fit, not seen" if q is more[0] else None
        axes.plot([q["labels"]] * 2, [q["low"], q["high"]], color="gray", linewidth=5, alpha=0.5, label=label)
    axes.set_xscale("log")
    labels = sorted({q["labels"] for q in [*points, *more]})
    axes.set_xticks(labels, labels=list(map(str, labels)))
    axes.minorticks_off()
    axes.set_xlabel(unit)
    axes.set_ylabel(primary)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
