"""A plan's score without test: fitted with the first seed, and judged on val, or over folds where there is no val.

The fit is that of a run: the probe's head, the best epoch, the chosen point of the frontier. Only training and val
rows reach a model. The score of one plan is an estimate for new rows. The best score of many plans is not: the plans
were compared on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import DataError, PlanError
from ..evidence.frontier import ALPHAS, choose
from .arms import Arm, ArmFitter, PointChoice
from .folds import CrossValidation, FoldFitter
from .job import Figures, Job, Start, figures_of, fit_start
from .prepare import prepare
from .train import source_before, source_of

if TYPE_CHECKING:
    from ..data.types import Splits
    from ..evidence.scoring import Predictions
    from ..model.forward import Outputs
    from ..model.types import Source
    from ..plan.schema import Plan
    from ..runs.estimates import Point
    from ..tasks import Task
    from ..training.records import Epoch
    from .target_data import TargetData

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
    plan, data = job.plan.fit, job.data
    from_probe = plan.start != "random" and not job.source.nothing_kept
    chooses = from_probe and plan.alpha == "chosen"
    trial = Trial(job, from_probe, source_before(job) if chooses or job.plan.source_data.each_epoch else None, watch)
    if data.splits.val:
        return trial.on_val()
    if not data.folds():
        raise DataError(f"{job.plan.data.path} has too few rows for val or folds, so no row is left to score a plan on")
    return trial.by_folds()


def judged_by(data: TargetData) -> tuple[str, int]:
    """Return which rows judge plans, and how many they are."""
    if data.splits.val:
        return "val", len(data.splits.val)
    return f"{len(data.folds())}-fold cross-validation", len(data.splits.train)


def alpha_on_folds(alpha: float | Literal["chosen"], from_probe: bool) -> float | None:
    """Return the α at which folds are scored: 1 without a probe to start from, None where the folds choose it.

    Raises PlanError for an α that is no point of the frontier.
    """
    if not from_probe:
        return 1.0
    if alpha == "chosen":
        return None
    near = next((a for a in ALPHAS if math.isclose(a, alpha, abs_tol=1e-9)), None)  # a search draws 0.1 · 3 > 0.3
    if near is None:
        raise PlanError(f"fit.alpha: folds are scored at α = 0, 0.1, … 1: set it to one of them, not {alpha:g}")
    return near


@dataclass(frozen=True)
class Trial:
    """The fit of a prepared plan with its first seed, and its score."""

    job: Job
    from_probe: bool  # the fit starts from a probe, so there is a frontier
    before: Predictions | None  # of the source itself on its select rows, where the plan asks what it keeps
    watch: Watch

    def on_val(self) -> Score:
        """Return the score of a fit on train, on val."""
        job, best = self.job, Figures()

        def on_epoch(seed: int, epoch: Epoch) -> None:
            if epoch.best:
                best.update(epoch.val)
            self.watch(epoch.epoch, dict(best))

        alpha = job.plan.fit.alpha
        choice = PointChoice(None if alpha == "chosen" else alpha, self.before)
        arm = self.fit(ArmFitter(job, on_epoch=on_epoch), choice)
        return self.score(job.outputs.logits(arm.target, "val"), arm.alpha)

    def by_folds(self) -> Score:
        """Return the score of the fits on the folds of train, each on the rows that its fit did not see."""
        job, metric = self.job, self.job.data.metric
        alpha = alpha_on_folds(job.plan.fit.alpha, self.from_probe)

        def chosen(points: list[Point]) -> Point:
            return choose(points, metric) if alpha is None else next(p for p in points if p.alpha == alpha)

        cross = FoldFitter(ArmFitter(job)).cross_validate(
            source_of(job.source, job.seeds[0]),
            job.spec.settings,
            (lambda: job.outputs.features("train", job.outputs.precision)) if self.from_probe else None,
            on_fold=lambda fold, points: self.watch(fold, chosen(points).figures),
        )
        point = chosen(cross.points)
        if alpha is None and job.plan.fit.retain is not None:
            point = self.point_above_floor(cross)
        return self.score(cross.rows[point.alpha], point.alpha)

    def point_above_floor(self, cross: CrossValidation) -> Point:
        """Return the best point over folds that keeps the floor of the source task, measured on the model of a run."""
        fitter, choice = ArmFitter(self.job), PointChoice(None, self.before, cross.points)
        if cross.average is None:
            arm = self.fit(fitter, choice)
        else:
            job, start = self.job, self.start()
            assert start is not None
            arm = FoldFitter(fitter).of_average(job.source, job.seeds[0], start, choice, cross.average)
        return next(p for p in cross.points if p.alpha == arm.alpha)

    def fit(self, fitter: ArmFitter, choice: PointChoice) -> Arm:
        """Fit on train."""
        job, seed = self.job, self.job.seeds[0]
        source = source_of(job.source, seed)
        return fitter.fit(source, job.spec.settings, seed, label="trial", start=self.start(), choice=choice)

    def start(self) -> Start | None:
        """Return the probe that the fit starts from, if it does."""
        job = self.job
        return fit_start(job.outputs.probe_features(), job.data, job.plan) if self.from_probe else None

    def score(self, rows: Outputs, alpha: float) -> Score:
        """Return the score by the logits of the rows that judge."""
        data = self.job.data
        return Score(figures_of([rows], data.task, data.metric), rows, judged_by(data)[0], alpha)
