"""A plan's score without test: fitted with the first seed, and judged on val, or over folds where there is no val.

The fit is that of a run: the probe's head, the best epoch, the chosen point of the frontier. Only training and val
rows reach a model. The score of one plan is an estimate for new rows. The best score of many plans is not: the plans
were compared on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError, PlanError
from ..evidence.frontier import ALPHAS, choose
from .arms import ArmFitter, PointChoice
from .folds import CrossValidation, FoldFitter
from .job import Figures, Job, Start, figures_of, fit_start
from .prepare import prepare
from .train import source_before, source_of

if TYPE_CHECKING:
    from ..data.types import Splits
    from ..model.forward import Outputs
    from ..model.types import Source
    from ..plan.schema import Plan
    from ..runs.estimates import Point
    from ..tasks import Task
    from ..training.records import Epoch

Watch = Callable[[int, Figures], None]  # takes an epoch or a fold, and the figures up to it; it may raise


@dataclass(frozen=True)
class Score:
    """The score of a plan on rows that its model did not train on."""

    figures: Figures  # the primary metric, and the mean loss as "loss"
    rows: Outputs  # logits of the rows that judged, in the order of val, or of train over folds
    by: str  # "val" or "5-fold cross-validation"
    alpha: float  # point of the frontier


def score_plan(
    plan: Plan,
    *,
    source: Source | None = None,
    data: tuple[Splits, Task] | None = None,
    watch: Watch = lambda step, figures: None,
) -> Score:
    """Fit a plan and return its score; ``source`` and ``data`` stand in for what the plan names.

    ``watch`` takes the best figures on val after each epoch, or those over the folds so far after each fold.

    Raises PlanError, DataError, SourceError or UsageError for what cannot work, and DivergedError.
    """
    return score_job(prepare(plan, source=source, data=data), watch)


def score_job(job: Job, watch: Watch = lambda step, figures: None) -> Score:
    """Fit a prepared plan and return its score; see :func:`score_plan`."""
    plan = job.plan.fit
    alpha = None if plan.alpha == "chosen" else plan.alpha
    from_probe = plan.start != "random" and not job.source.nothing_kept
    before = source_before(job) if (from_probe and alpha is None) or job.plan.source_data.each_epoch else None
    choice = PointChoice(alpha, before)
    if job.data.splits.val:
        return score_on_val(job, from_probe, choice, watch)
    if not job.data.folds():
        raise DataError(f"{job.plan.data.path} has too few rows for val or folds, so no row is left to score a plan on")
    return score_by_folds(job, from_probe, choice, watch)


def judged_by(job: Job) -> tuple[str, int]:
    """Return which rows judge the plans of a job, and how many they are."""
    if job.data.splits.val:
        return "val", len(job.data.splits.val)
    return f"{len(job.data.folds())}-fold cross-validation", len(job.data.splits.train)


def score_on_val(job: Job, from_probe: bool, choice: PointChoice, watch: Watch) -> Score:
    """Return the score of a fit on train, on val."""
    best: Figures = {}

    def on_epoch(seed: int, epoch: Epoch) -> None:
        if epoch.best:
            best.update(epoch.val)
        watch(epoch.epoch, dict(best))

    start: Start | None = None
    if from_probe:
        start = fit_start(job.outputs.probe_features(), job.data, job.plan)
    seed = job.seeds[0]
    fitter = ArmFitter(job, on_epoch=on_epoch)
    arm = fitter.fit(source_of(job, seed), job.spec.settings, seed, label="trial", start=start, choice=choice)
    rows = job.outputs.logits(arm.target, "val")
    return Score(figures_of([rows], job.data.task, job.data.metric), rows, judged_by(job)[0], arm.alpha)


def score_by_folds(job: Job, from_probe: bool, choice: PointChoice, watch: Watch) -> Score:
    """Return the score of the fits on the folds of train, each on the rows that its fit did not see."""
    metric, alpha = job.data.metric, alpha_on_folds(job, from_probe)

    def chosen(points: list[Point]) -> Point:
        return choose(points, metric) if alpha is None else next(p for p in points if p.alpha == alpha)

    cross = FoldFitter(ArmFitter(job)).cross_validate(
        source_of(job, job.seeds[0]),
        job.spec.settings,
        (lambda: job.outputs.features("train", job.outputs.precision)) if from_probe else None,
        on_fold=lambda fold, points: watch(fold, chosen(points).figures),
    )
    point = chosen(cross.points)
    if from_probe and alpha is None and job.plan.fit.retain is not None:
        point = point_above_floor(job, choice, cross)
    return Score(point.figures, cross.rows[point.alpha], judged_by(job)[0], point.alpha)


def alpha_on_folds(job: Job, from_probe: bool) -> float | None:
    """Return the α at which folds are scored: 1 without a probe to start from, None where the folds choose it.

    Raises PlanError for an α that is no point of the frontier.
    """
    alpha = job.plan.fit.alpha
    if not from_probe or alpha == "chosen":
        return None if from_probe else 1.0
    near = next((a for a in ALPHAS if math.isclose(a, alpha, abs_tol=1e-9)), None)  # a search draws 0.1 · 3 > 0.3
    if near is None:
        raise PlanError(f"fit.alpha: folds are scored at α = 0, 0.1, … 1: set it to one of them, not {alpha:g}")
    return near


def point_above_floor(job: Job, choice: PointChoice, cross: CrossValidation) -> Point:
    """Return the best point over folds that keeps the floor of the source task, as the model of a run shows it."""
    fitter, seed = ArmFitter(job), job.seeds[0]
    start = fit_start(job.outputs.probe_features(), job.data, job.plan)
    choice = PointChoice(None, choice.source, cross.points)
    if cross.average is not None:
        arm = FoldFitter(fitter).of_average(job.source, seed, start, choice, cross.average)
    else:
        arm = fitter.fit(job.source, job.spec.settings, seed, label="trial", start=start, choice=choice)
    return next(p for p in cross.points if p.alpha == arm.alpha)
