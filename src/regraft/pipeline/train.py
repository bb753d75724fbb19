"""Training: the probe, then a fit a seed, then the scratch control of scratch.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ..compute import distributed
from ..errors import PlanError, UsageError
from ..evidence.frontier import ALPHAS, check_floor, choose
from ..evidence.linear_probe import Probe
from ..evidence.looks import FIRST_LOOK, LOOKS, look
from ..evidence.retention import retention_of
from ..io.log import LOGGER
from ..model.reinitialise import untrained
from ..runs import records
from ..runs.checkpoint_records import OpeningRecord, ProbeRecord
from ..runs.ledger import open_test
from ..training.checkpoints import CheckpointManager
from ..training.records import Epoch
from ..training.settings import Settings
from .arms import Arm, ArmFitter, PointChoice, ProgressDisplay
from .evaluate import Trained
from .folds import CrossValidation, FoldAverage, FoldFitter
from .job import Job, Start, fit_linear_probe, fit_soft_head
from .scratch import ScratchFits

if TYPE_CHECKING:
    from ..evidence.scoring import Predictions
    from ..model.forward import Outputs
    from ..model.types import Source
    from ..runs.folder import RunFolder
    from .finish import Clock


ENDS = {  # why no further seed is fitted
    "decided": "the verdict is decided",
    "futile": "the test rows alone leave the verdict open at this gain",
    "last": "no more looks were planned",
}


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
        start = None if probe is None or plan.start == "random" else Start(probe, self.initial_head(probe))
        chooses = start is not None and alpha is None
        before = source_before(job) if chooses or job.plan.source_data.each_epoch else None
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
        average = cross.average if settings.epochs else None  # else the probe stands
        fits = SeedFits(self, settings, start, choice, chooses, average)
        first = job.seeds[:FIRST_LOOK] if job.looks else job.seeds
        with self.clock("fit"):
            arms = fits.fit(first)
        if job.scratch is None:
            return Trained(arms, [], probe, cross, fitted=settings.epochs > 0)
        with self.clock("scratch"):
            control = ScratchFits.chosen(self.fitter())
            scratch = control.fit(first)
        opened = self.open_test() if job.looks else None
        if job.looks:
            self.fit_until_decided(fits, control, arms, scratch)
        fitted = settings.epochs > 0
        return Trained(arms, scratch, probe, cross, fitted=fitted, scratch_how=control.how, opened=opened)

    def open_test(self) -> int:
        """Return how often test was opened, with this run, whose looks are one opening; count it once a run."""
        digest = self.job.data.splits.test_digest
        if (saved := self.checkpoints.done("test opened")) is not None:
            known = records.checked(OpeningRecord, saved.record)
            if known.test_digest == digest:  # else other test rows were accepted
                return known.opened
        opened = open_test(digest, str(self.folder.path.resolve())) if distributed.is_rank0() else 0
        opened = distributed.broadcast(opened)
        self.checkpoints.finish("test opened", {"opened": opened, "test_digest": digest}, {})
        return opened

    def fit_until_decided(self, fits: SeedFits, control: ScratchFits, arms: list[Arm], scratch: list[Arm]) -> None:
        """Look at the verdict, and fit one more seed of both arms, until a look needs no further seed.

        Appends to ``arms`` and ``scratch``.
        """
        job, metric, on_test = self.job, self.job.data.metric, self.job.outputs.on_test
        pairs: list[tuple[Predictions, Predictions]] = []
        while True:
            with self.clock("looks"):
                new = zip(arms[len(pairs) :], scratch[len(pairs) :], strict=True)
                pairs += [(on_test(fit.target), on_test(other.target)) for fit, other in new]
                seen = distributed.broadcast(look(metric, pairs))
            gained = seen.verdict.gain
            shown = "" if gained is None else f": gain {gained.text('+')} over scratch"
            LOGGER.info("look %d of %d, %d seeds%s", len(pairs) - FIRST_LOOK + 1, LOOKS, len(pairs), shown)
            if seen.ends:
                LOGGER.info("no further seed is fitted: %s", ENDS[seen.ends])
                return
            seeds = job.seeds[len(pairs) : len(pairs) + 1]
            with self.clock("fit"):
                arms += fits.fit(seeds)
            with self.clock("scratch"):
                scratch += control.fit(seeds)

    def note(self, epochs: int, seed: int, epoch: Epoch) -> None:
        """Write an epoch of so many to history.jsonl, and its line to the log; bars show it otherwise."""
        folder, line = self.folder, epoch_line(epoch, epochs, seed)
        folder.append("history.jsonl", {"seed": seed, **asdict(epoch)})
        if self.track is None:
            LOGGER.info("%s", line)
        else:
            folder.log(line)

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

        probe = load_or_fit_probe(self.checkpoints, "probe", fit)
        LOGGER.info("linear probe: λ = %g, chosen by %s", probe.strength, probe.chosen_by)
        if probe.note:
            LOGGER.info("%s", probe.note)
        return probe

    def initial_head(self, probe: Probe) -> Probe:
        """Return the head that training starts from: the probe's, or that of a soft probe as the plan says."""
        if self.job.plan.fit.start == "probe":
            return probe

        def fit() -> Probe:
            train = self.features["train"]
            return distributed.broadcast(fit_soft_head(train, self.job.data, self.job.plan.probe))

        return load_or_fit_probe(self.checkpoints, "soft probe", fit)

    def cross_validate(self, from_probe: bool) -> CrossValidation:
        """Return the cross-validation of the fit, from the probe of each fold or from a random head."""
        features = (lambda: self.features["train"]) if from_probe else None
        settings = self.job.spec.settings
        folds = FoldFitter(self.fitter(partial(self.note, settings.epochs)))
        return folds.cross_validate(self.job.source, settings, features, keep=True)


def source_of(source: Source, seed: int) -> Source:
    """Return the source of a seed's fit: a random one is drawn anew for every seed."""
    return replace(untrained(source, seed), name=source.name) if source.nothing_kept else source


def source_before(job: Job) -> Predictions | None:
    """Return the predictions of the source itself on the select rows of its data.

    Raises PlanError where the floor is out of reach: even unchanged weights do not prove it.
    """
    retain = job.plan.fit.retain
    if job.source_data is None:
        return None
    if retain is not None and not job.data.splits.val and not job.data.folds():
        raise PlanError("fit.retain: too few rows for val or folds, so nothing to choose α by: remove it")
    passes = len(ALPHAS) + (job.plan.fit.epochs if job.plan.source_data.each_epoch else 0)
    store = job.outputs.store
    job.source_data.keep_images("select", passes * len(job.seeds), store.cache, store.note)
    rows = job.source_data.scored(job.source.backbone, "select")
    if retain is not None:
        check_floor(retention_of(job.source_data.metric, rows, rows), retain)
    return rows


@dataclass
class SeedFits:
    """The fits of all seeds."""

    trainer: Trainer
    settings: Settings
    start: Start | None
    choice: PointChoice
    chooses: bool  # α was left to be chosen
    average: FoldAverage | None = None  # the first seed's, where the model is the average of the folds' weights

    def fit(self, seeds: Sequence[int]) -> list[Arm]:
        """Fit these seeds, and note each epoch."""
        job, probe = self.trainer.job, self.start.probe if self.start else None
        later: list[tuple[int, Epoch]] = []  # where each rank fits other seeds, rank 0 notes all epochs
        by_arms = distributed.world_size() > 1 and job.plan.run.spread == "arms"
        note = partial(self.trainer.note, self.settings.epochs)
        fitter = self.trainer.fitter((lambda seed, epoch: later.append((seed, epoch))) if by_arms else note)
        arms = fitter.fit_each(
            seeds,
            partial(self.fit_seed, fitter),
            lambda seed: job.initial_target(source_of(job.source, seed), seed, probe),
        )
        for seed, epoch in sorted(distributed.gather_objects(later), key=lambda e: e[0]):
            note(seed, epoch)
        return arms

    def fit_seed(self, fitter: ArmFitter, seed: int) -> Arm:
        """Fit a seed, or load its arm, and report the chosen point of its frontier."""
        job, label = self.trainer.job, f"seed {seed}"
        source, alpha = source_of(job.source, seed), self.choice.alpha
        # where α is chosen by folds, the first seed's points still show what the source keeps
        shows = self.chooses and self.choice.source is not None and seed == job.seeds[0]
        choice = replace(self.choice, alpha=None) if shows else self.choice

        def fit() -> Arm:
            if self.average is None or self.start is None:
                return fitter.fit(source, self.settings, seed, label=label, start=self.start, choice=choice)
            folds, own = FoldFitter(fitter), self.average
            if seed != job.seeds[0]:
                own = folds.average(source, self.settings, self.features, seed)
            return folds.of_average(source, seed, self.start, choice, own)

        arm = fitter.load_or_fit(label, source, seed, fit)
        if alpha is None and arm.points:
            by, retain = "val" if job.data.splits.val else "cross-validation", job.plan.fit.retain
            floor = "" if retain is None else f", keeping {retain:g} of the source"
            LOGGER.info("seed %d   frontier: α = %g, by %s%s", seed, arm.alpha, by, floor)
        return arm

    def features(self) -> Outputs:
        """Return the source's features of train."""
        return self.trainer.features["train"]


def load_or_fit_probe(checkpoints: CheckpointManager, name: str, fit: Callable[[], Probe]) -> Probe:
    """Return the probe that an earlier process checkpointed under ``name``, or fit it and checkpoint it.

    Raises UsageError for a damaged checkpoint.
    """
    saved = checkpoints.done(name)
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
        checkpoints.finish(name, record, {"weight": probe.weight, "bias": probe.bias})
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
