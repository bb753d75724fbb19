"""Training: the probe, then a fit a seed, then the scratch control."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ..compute import distributed
from ..errors import PlanError, UsageError
from ..evidence.frontier import choose
from ..evidence.linear_probe import Probe
from ..evidence.retention import retention_of
from ..io.log import LOGGER
from ..model.reinitialise import untrained
from ..runs import records
from ..runs.checkpoint_records import ProbeRecord
from ..runs.estimates import Point
from ..training.checkpoints import CheckpointManager
from ..training.records import Epoch
from .arms import Arm, ArmFitter, CrossValidation, PointChoice, ProgressDisplay
from .evaluate import Trained
from .job import Job, fit_linear_probe
from .scratch import fit_scratch

if TYPE_CHECKING:
    from ..evidence.scoring import Predictions
    from ..model.forward import Outputs
    from ..model.types import Source
    from ..runs.folder import RunFolder
    from ..training.settings import Settings
    from .finish import Clock


@dataclass
class Trainer:
    """Trains the arms of a job. What the checkpoints have is not done again."""

    job: Job
    folder: RunFolder
    clock: Clock
    checkpoints: CheckpointManager
    track: ProgressDisplay | None = None

    def train(self) -> Trained:
        """Return the probe and the arms of every seed."""
        job, settings, plan = self.job, self.job.spec.settings, self.job.plan.fit
        alpha = None if plan.alpha == "chosen" else plan.alpha
        probe = None if job.source.nothing_kept else self.probe()
        start = probe if plan.start == "probe" else None
        chooses = start is not None and alpha is None
        before = self.source_before() if chooses or job.plan.source_data.each_epoch else None
        cross = CrossValidation([], 0, {})
        if not job.data.splits.val and job.data.folds() and (start is not None or job.plan.data.folds):
            with self.clock("cross-validation"):
                cross = self.cross_validate(start is not None)
        if start is not None and cross.points:
            best = choose(cross.points, job.spec.metric).alpha if alpha is None else alpha
            if best == 0:
                LOGGER.info("by cross-validation fine-tuning nowhere beats the probe, so the probe stands")
                settings = replace(settings, epochs=0)
            if plan.retain is None or best == 0:
                alpha = best
                LOGGER.info("frontier: α = %g, by cross-validation", alpha)
        choice = PointChoice(alpha, before, cross.points)
        with self.clock("fit"):
            arms = SeedFits(self, settings, start, choice, chooses).fit()
        with self.clock("scratch"):
            scratch, how = fit_scratch(self.fitter()) if job.scratch is not None else ([], "")
        return Trained(arms, scratch, probe, cross, fitted=settings.epochs > 0, scratch_how=how)

    def fitter(self, on_epoch: Callable[[int, Epoch], None] = lambda seed, epoch: None) -> ArmFitter:
        """Return what fits an arm of the job."""
        return ArmFitter(self.job, self.checkpoints, self.track, on_epoch, logging.INFO)

    @cached_property
    def features(self) -> dict[str, Outputs]:
        """Return the source's features of train and val; compute them at the first use."""
        with self.clock("features"):
            return self.job.outputs.at_level(logging.INFO).probe_features()

    def probe(self) -> Probe:
        """Fit the linear probe, or load it from its checkpoint, and report its λ."""

        def fit() -> Probe:
            features = self.features
            with self.clock("probe"):  # rank 0's: L-BFGS rounds differently on each rank
                return distributed.broadcast(fit_linear_probe(features, self.job.data, self.job.plan.probe))

        probe = load_or_fit_probe(self.checkpoints, fit)
        LOGGER.info("linear probe: λ = %g, chosen by %s", probe.strength, probe.chosen_by)
        if probe.note:
            LOGGER.info("%s", probe.note)
        return probe

    def source_of(self, seed: int) -> Source:
        """Return the source of a seed's fit: a random one is drawn anew for every seed."""
        source = self.job.source
        return replace(untrained(source, seed), name=source.name) if source.nothing_kept else source

    def source_before(self) -> Predictions | None:
        """Return the predictions of the source itself on the select rows of its data.

        Raises PlanError where the floor is out of reach: even unchanged weights do not prove it.
        """
        job, retain = self.job, self.job.plan.fit.retain
        if job.source_data is None:
            return None
        if retain is not None and not job.data.splits.val and not job.data.folds():
            text = "fit.retain: too few rows for val or folds, so nothing to choose α by: remove it"
            raise PlanError([text])
        rows = job.source_data.scored(job.source.backbone, "select")
        if retain is not None:
            choose([Point(0.0, {}, retention_of(job.source_data.metric, rows, rows))], job.spec.metric, retain)
        return rows

    def cross_validate(self, from_probe: bool) -> CrossValidation:
        """Return the cross-validation of the fit, from the probe of each fold or from a random head."""
        features = (lambda: self.features["train"]) if from_probe else None
        return self.fitter().cross_validate(self.job.source, self.job.spec.settings, features)


@dataclass
class SeedFits:
    """The fits of all seeds."""

    trainer: Trainer
    settings: Settings
    start: Probe | None
    choice: PointChoice
    chooses: bool  # α was left to be chosen

    def fit(self) -> list[Arm]:
        """Fit every seed, and note each epoch."""
        job = self.trainer.job
        later: list[tuple[int, Epoch]] = []  # where each rank fits other seeds, rank 0 notes all epochs
        by_arms = distributed.world_size() > 1 and job.plan.run.spread == "arms"
        fitter = self.trainer.fitter((lambda seed, epoch: later.append((seed, epoch))) if by_arms else self.note)
        arms = fitter.fit_each(
            job.seeds,
            partial(self.fit_seed, fitter),
            lambda seed: job.initial_target(self.trainer.source_of(seed), seed, self.start),
        )
        for seed, epoch in sorted(distributed.gather_objects(later), key=lambda e: e[0]):
            self.note(seed, epoch)
        return arms

    def fit_seed(self, fitter: ArmFitter, seed: int) -> Arm:
        """Fit a seed, or load its arm, and report the chosen point of its frontier."""
        job, label = self.trainer.job, f"seed {seed}"
        source, alpha = self.trainer.source_of(seed), self.choice.alpha
        # where α is chosen by folds, the first seed's points still show what the source keeps
        shows = self.chooses and self.choice.source is not None and seed == job.seeds[0]
        choice = replace(self.choice, alpha=None) if shows else self.choice
        arm = fitter.load_or_fit(
            label,
            source,
            seed,
            lambda: fitter.fit(source, self.settings, seed, label=label, start=self.start, choice=choice),
        )
        if alpha is None and arm.points:
            by, retain = "val" if job.data.splits.val else "cross-validation", job.plan.fit.retain
            floor = "" if retain is None else f", keeping {retain:g} of the source"
            LOGGER.info("seed %d   frontier: α = %g, by %s%s", seed, arm.alpha, by, floor)
        return arm

    def note(self, seed: int, epoch: Epoch) -> None:
        """Write an epoch to history.jsonl, and its line to the log; bars show it otherwise."""
        folder, line = self.trainer.folder, epoch_line(epoch, self.settings.epochs, seed)
        folder.append("history.jsonl", {"seed": seed, **asdict(epoch)})
        if self.trainer.track is None:
            LOGGER.info("%s", line)
        else:
            folder.log(line)


def load_or_fit_probe(checkpoints: CheckpointManager, fit: Callable[[], Probe]) -> Probe:
    """Return the probe that an earlier process checkpointed, or fit it and checkpoint it.

    Raises UsageError for a damaged checkpoint.
    """
    saved = checkpoints.done("probe")
    if saved is None:
        probe = fit()
        record = {
            "strength": probe.strength,
            "losses": list(probe.losses.items()),
            "chosen_by": probe.chosen_by,
            "rows": probe.rows,
            "of": probe.of,
            "passes": probe.passes,
        }
        checkpoints.finish("probe", record, {"weight": probe.weight, "bias": probe.bias})
        return probe
    try:
        known = records.checked(ProbeRecord, saved.record)
    except ValueError as error:
        raise UsageError(f"the probe's checkpoint is damaged ({error}): remove it and resume again") from error
    return Probe(
        saved.tensors["weight"],
        saved.tensors["bias"],
        known.strength,
        {float(strength): loss for strength, loss in known.losses},
        known.chosen_by,
        known.rows,
        known.of,
        known.passes,
    )


def epoch_line(epoch: Epoch, epochs: int, seed: int) -> str:
    """Return one plain line of an epoch."""
    val = "   ".join(f"val {k} {v:.4f}" for k, v in epoch.val.items())
    terms = "   ".join(f"{k} {v:.4f}" for k, v in epoch.terms.items())
    source = "   ".join(f"source {k} {v:.4f}" for k, v in epoch.source.items())
    best = " *" if epoch.best and epoch.val else ""
    return "   ".join(s for s in (f"seed {seed}   epoch {epoch.epoch}/{epochs}", terms, val, source) if s) + best
