"""The pipeline: plan → data, source → graft → probe → fit → evaluate → run folder.

The only file that knows all the others, with :mod:`regraft.pipeline.prepare` and :mod:`regraft.pipeline.arms`, which
are its first and second half.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..compute import distributed
from ..compute.device import choose_device
from ..compute.malloc import freed_memory_kept
from ..compute.versions import __version__
from ..data.columns import ids_of
from ..data.splitting import write_manifest
from ..errors import DivergedError, PlanError, RegraftError, UsageError, shorten
from ..evidence.frontier import choose
from ..evidence.linear_probe import Probe
from ..evidence.ood import MAX_ROWS, MIN_HELD_OUT_ROWS, Novelty, fit_novelty
from ..evidence.retention import retention_of
from ..evidence.scoring import Predictions
from ..io import guarded
from ..io.command_lines import command
from ..io.locks import refuse
from ..io.progress import no_progress, reporting
from ..io.streams import Report
from ..model.forward import Outputs
from ..model.reinitialise import untrained
from ..model.types import Source, Target
from ..model.weights import snapshot
from ..plan.schema import Plan, ResolvedPlan
from ..plan.write import write_plan
from ..runs.estimates import Point
from ..runs.folder import LOCK, MADE_LATER, RunFolder, Unwritten, check_new, check_writable, read_json, status_of
from ..runs.ledger import open_test
from ..runs.result import FILE as RESULT
from ..runs.result_parts import Timing
from ..runs.side_files import Environment
from ..training.checkpoints import CheckpointManager
from ..training.records import Epoch
from ..training.signals import Interrupted, stopping
from .arms import (
    Arm,
    CrossValidation,
    Track,
    cross_validate,
    each_arm,
    features_of,
    features_of_source,
    fit_arm,
    initial_target,
    load_or_fit,
    probe_on,
    probe_once,
)
from .evaluate import Trained, evaluate_all, prediction_rows
from .feature_reuse import DECISION
from .findings import class_lines, classes_of, one_line, records
from .gallery import write_gallery
from .label_errors import write_suspects
from .model_folder import save_ends, save_model, save_novelty
from .prepare import Prepared, prepare
from .resume import PreviousRun, digest_of_plan, previous_run, refuse_changes
from .scratch import fit_scratch
from .source_data import Part


def run(
    plan: Plan,
    *,
    say: Report = lambda line: None,
    track: Track | None = None,
    source: Source | None = None,
    resume: bool = False,
    accept_changes: bool = False,
) -> Path:
    """Data and source → a finished run folder, whose path is returned.

    ``source`` stands in for the plan's reference where it is a module of one's own. With ``resume`` a
    run that was left goes on where it was, bit for bit; one that is finished is left alone.

    Raises any RegraftError, and Interrupted at a signal. Before training nothing is written; a folder
    that was already made then says in its result.json that the run failed, and why.
    """
    if plan.run.out is None:
        raise UsageError("say where the run goes: --out runs/NAME")
    wanted = None if plan.run.processes == "auto" else plan.run.processes
    distributed.join(wanted, cpu=choose_device(plan.run.device)[0].type == "cpu")
    try:
        with distributed.naming_a_lost_rank(str(plan.run.out)):
            if not distributed.is_rank0():
                say, track = no_progress, None
            left = folder_state(Path(plan.run.out), resume=resume) if distributed.is_rank0() else ""
            left = distributed.broadcast(left)
            if left == "finished":
                return Path(plan.run.out)
        with distributed.naming_a_lost_rank(str(plan.run.out)), reporting(say):
            return run_job(
                plan, say, track, source, begun=left == "begun", resume=resume, accept_changes=accept_changes
            )
    finally:
        distributed.leave()


def folder_state(out: Path, *, resume: bool) -> str:
    """What a folder holds: nothing ("new"), a run that wrote no plan ("made"), one that did ("begun"),
    or a "finished" one.

    Raises UsageError or DiskError where no run can be made there, or gone on with.
    """
    if not resume or not out.exists():
        check_new(out)
        return "new"
    guarded.check_folder(out, leave=MADE_LATER)  # it is written into: no link may lead elsewhere
    if status_of(out) == "finished":
        return "finished"
    refuse(out / LOCK)
    if not looks_like_a_run(out):
        check_new(out)
    check_writable(out)
    return "begun" if (out / "plan.toml").exists() else "made"


@freed_memory_kept()
def run_job(
    plan: Plan,
    say: Report,
    track: Track | None,
    source: Source | None,
    *,
    begun: bool,
    resume: bool,
    accept_changes: bool,
) -> Path:
    """The run, by one process or by each of several that have met."""
    out, before = Path(str(plan.run.out)), None
    if plan.run.shard and distributed.world_size() == 1:
        text = "run.shard: one process has nobody to divide weights with: --nproc N, or run.shard=false"
        raise PlanError([text])
    clock = Clock()
    with clock("prepare"):
        if begun:
            before = previous_run(out, plan, accept_changes=accept_changes)
            plan = before.plan
        p = prepare(plan, source=source)
        if before is not None:
            before = refuse_changes(before, p, accept_changes=accept_changes)
        distributed.all_reduce_sum(0.0)  # all have read what the first now writes
    mine = RunFolder(out, resume=resume) if distributed.is_rank0() else Unwritten(out)
    # inside the folder's block, which writes down why a run failed
    with mine as folder, distributed.naming_a_lost_rank(str(out)), stopping() as signals:

        def tell(line: str) -> None:
            folder.log(line)
            say(line)

        def about() -> dict[str, Any]:
            """What is kept of the run as a whole."""
            chosen = {k[1]: how for k, how in p.kept.items() if isinstance(k, tuple) and k[0] == DECISION}
            return {
                "history": folder.size("history.jsonl"),
                "reuse": chosen,
                "seconds": clock.stages,
                "data": p.splits.digest,
                "plan": digest_of_plan(p.plan),
            }

        own_arms = plan.run.spread == "arms" and distributed.world_size() > 1
        keeper = CheckpointManager(
            folder.path / "checkpoints",
            *plan.run.checkpoint_interval,
            about=about,
            say=tell,
            writes=distributed.is_rank0() and not own_arms,
            divided=plan.run.shard,
            signals=signals,
        )
        if before is None or before.changes:
            describe(p, folder, tell)
        if before is not None:
            resumed(before, p, folder, keeper, clock, tell)
        try:
            trained = train(p, folder, tell, track, clock, keeper)
            finish(p, folder, trained, clock)
        except (MemoryError, RuntimeError) as error:
            if str(error).startswith("DataLoader worker"):  # torch sees it in the middle of a step
                raise RegraftError(
                    f"a loader process was killed ({error}): go on with {command('fit', '--resume', out)}, and with "
                    f"--workers 0 if it comes again (it may be out of memory)"
                ) from error
            known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not known and "allocate memory" not in str(error):
                raise
            raise RegraftError(
                f"there is not enough memory ({str(error).splitlines()[0] if str(error) else 'host'}): go on "
                f"with {command('fit', '--resume', out)} --accept-changes --batch-size {half(p.plan)} --set "
                f"fit.accumulate={2 * p.plan.fit.accumulate}, which keeps the rows of a step, or fewer "
                f"--workers"
            ) from error
        except DivergedError as error:
            last = f"; the last good checkpoint is {keeper.good[-1]}" if keeper.good else ""
            raise DivergedError(f"{error}{last}") from error
        except Interrupted as stop:
            text = f"{stop}; go on with: {command('fit', '--resume', out)}"
            raise Interrupted(stop.signum, text) from None
        keeper.clear()
    return folder.path


BEFORE_PLAN = {LOCK, "log.txt", "result.json", "check.json", "environment.json", "loading.json", "manifest.jsonl"}


def looks_like_a_run(folder: Path) -> bool:
    """It has a plan, or nothing but what a run writes before."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return "plan.toml" in names or names <= BEFORE_PLAN


def half(plan: ResolvedPlan) -> int:
    return max(1, plan.fit.batch_size // 2)


def resumed(
    before: PreviousRun, p: Prepared, folder: RunFolder, keeper: CheckpointManager, clock: Clock, say: Report
) -> None:
    """Take up what an earlier process left."""
    folder.remove("result.json")
    keeper.scan()
    about = keeper.newest["about"] if keeper.newest else {}
    folder.cut("history.jsonl", about.get("history", 0))  # later lines will be written again
    p.kept.update({(DECISION, name): how for name, how in about.get("reuse", {}).items()})
    clock.add(about.get("seconds", {}))
    done = ", ".join(keeper.parts) or "nothing"
    say(f"{folder.path} is resumed; done before: {done}")
    for change in before.changes:
        say(f"accepted: {change}")
    was, now = read_json(folder.path, "environment.json", Environment), environment(p)
    other = [
        f"{name} {was.versions.get(name)} → {version}"
        for name, version in now.versions.items()
        if was.versions.get(name) != version
    ]
    hardware = ("device_name", "threads", "processes")
    other += [f"{k} {getattr(was, k)} → {getattr(now, k)}" for k in hardware if getattr(was, k) != getattr(now, k)]
    if other:
        say(f"the same bits are not to be expected: {', '.join(other)}")
    record = before.record(done=list(keeper.parts), environment=other)
    folder.append("resumes.jsonl", record)


def describe(p: Prepared, folder: RunFolder, say: Report) -> None:
    """What is known before training: notes, and the files that say what the run is made from."""
    for line in (*class_lines(classes_of(p.splits, p.task)), *p.splits.notes, *p.source.notes, *p.source_notes):
        say(line)
    for finding in p.findings:
        if finding.severity != "note":
            say(f"{finding.severity}: {one_line(finding)} ({shorten(finding.examples, 3)})")
    settled = [{"where": where, "what": what} for where, what in p.splits.settled]
    folder.json("check.json", {"findings": records(p.findings), "settled": settled})
    folder.json("environment.json", environment(p).model_dump())
    folder.json("loading.json", p.target.report)
    if distributed.is_rank0():
        write_manifest(p.splits, folder.path / "manifest.jsonl")
    folder.text("plan.toml", write_plan(p.plan, p.reasons))  # last: with it a run can be resumed


def finish(p: Prepared, folder: RunFolder, trained: Trained, clock: Clock) -> None:
    """Save the first seed's model, open test, and write what was found."""
    arm = trained.arms[0]
    if distributed.is_rank0():
        save_model(folder, arm.target, p.task)
    # over folds without a floor, only a run with source data walked the line of its own fit
    if (arm.points or (trained.fitted and trained.cross.points[1:])) and distributed.is_rank0():
        start = initial_target(p, p.source, p.seeds[0], trained.probe)
        save_ends(folder, snapshot(start), arm.end or snapshot(arm.target), arm.alpha)
    with clock("novelty"):
        novelty = novelty_of(p, arm.target)
    if novelty is not None and distributed.is_rank0():
        save_novelty(folder, novelty)
    with clock("evaluate"):
        where = str(folder.path.resolve())
        opened = source_opened = 0
        if distributed.is_rank0():
            opened = open_test(p.splits.test_digest, where)
            source_opened = open_test(p.source_data.digest, where) if p.source_data else 0
        evaluation = evaluate_all(p, trained, opened, source_opened)
    lines = prediction_rows(p, evaluation.predictions)
    folder.csv("predictions.csv", next(lines), lines, escape=p.plan.run.escape_csv)
    if distributed.is_rank0():
        write_gallery(folder, p.task, p.splits, evaluation.predictions)
    with clock("suspects"):
        write_suspects(folder, p, trained.probe)
    rest = {"resumed": folder.resumes(), "timing": Timing(clock.seconds())}
    folder.json(RESULT, evaluation.result.model_copy(update=rest).model_dump())


def novelty_of(p: Prepared, target: Target) -> Novelty | None:
    """What tells rows that are unlike train; None where val has too few rows for a threshold."""
    if len(p.splits.val) < MIN_HELD_OUT_ROWS:
        return None

    def some(split: str, most: int) -> list[int]:  # by content: the order of the data does not matter
        ids = list(ids_of(getattr(p.splits, split)))
        return sorted(sorted(range(len(ids)), key=ids.__getitem__)[:most])

    enough = max(MAX_ROWS, 10 * p.task.outputs)  # of each class a few
    train = features_of(p, target, "train", some("train", enough))
    val = features_of(p, target, "val", some("val", MAX_ROWS))
    classes = train.targets.tolist() if p.task.has_classes else [0] * len(train.ids)
    return fit_novelty(train.values.numpy(), classes, val.values.numpy())


def train(
    p: Prepared, folder: RunFolder, say: Report, track: Track | None, clock: Clock, keeper: CheckpointManager
) -> Trained:
    """Probe, then a fit a seed, then the scratch control; what the keeper has is not done again."""
    probe, start, crossed, chosen = None, None, CrossValidation([], 0, {}), p.settings
    alpha = None if p.plan.fit.alpha == "chosen" else p.plan.fit.alpha

    @cache
    def features() -> dict[str, Outputs]:
        with clock("features"):
            return features_of_source(p, say)

    def fit_probe() -> Probe:
        found = features()
        with clock("probe"):
            return distributed.broadcast(probe_on(p, found))  # L-BFGS rounds as its process does

    if not p.source.nothing_kept:
        probe = probe_once(keeper, fit_probe)
        say(f"linear probe: λ = {probe.strength:g}, chosen by {probe.chosen_by}")
        if probe.note:
            say(probe.note)
        start = probe if p.plan.fit.start == "probe" else None
    walks = start is not None and alpha is None
    select = source_before(p, "select") if walks or p.plan.source_data.each_epoch else None
    if not p.splits.val and p.folds() and (start is not None or p.plan.data.folds):
        rows = (lambda: features()["train"]) if start else None
        with clock("cross-validation"):
            crossed = cross_validate(p, p.source, chosen, rows, keeper)
    if start is not None and crossed.points:
        best = choose(crossed.points, p.metric).alpha if alpha is None else alpha
        if best == 0:
            say("by cross-validation fine-tuning nowhere beats the probe, so the probe stands")
            chosen = replace(chosen, epochs=0)
        if p.plan.fit.retain is None or best == 0:
            alpha = best
            say(f"frontier: α = {alpha:g}, by cross-validation")

    def note(seed: int, epoch: Epoch) -> None:
        folder.append("history.jsonl", {"seed": seed, **asdict(epoch)})
        line = in_words(epoch, chosen.epochs, seed)
        (say if track is None else folder.log)(line)  # what is said is logged too

    later: list[tuple[int, Epoch]] = []  # where each process fits other seeds, the first notes all
    by_arms = distributed.world_size() > 1 and p.plan.run.spread == "arms"

    def fitted(seed: int) -> Arm:
        def log(epoch: Epoch) -> None:
            if by_arms:
                later.append((seed, epoch))
            else:
                note(seed, epoch)

        source, label = source_of(p, seed), f"seed {seed}"
        # where α is chosen by folds, the first seed's points still say what the source keeps
        tells = walks and select is not None and seed == p.seeds[0]
        arm = load_or_fit(
            keeper,
            label,
            p,
            source,
            seed,
            lambda: fit_arm(
                p,
                source,
                chosen,
                seed,
                start=start,
                alpha=None if tells else alpha,
                select=select,
                points=crossed.points,
                log=log,
                track=track,
                label=label,
                say=say,
                keeper=keeper,
            ),
        )
        if alpha is None and arm.points:
            by = "val" if p.splits.val else "cross-validation"
            say(f"seed {seed}   frontier: α = {arm.alpha:g}, by {by}{floor(p)}")
        return arm

    with clock("fit"):
        arms = each_arm(p, p.seeds, fitted, lambda seed: initial_target(p, source_of(p, seed), seed, start))
    for seed, epoch in sorted(distributed.gather_objects(later), key=lambda e: e[0]):
        note(seed, epoch)
    with clock("scratch"):
        scratch, how = fit_scratch(p, say, track, keeper) if p.scratch is not None else ([], "")
    return Trained(arms, scratch, probe, crossed, fitted=chosen.epochs > 0, scratch_how=how)


def source_of(p: Prepared, seed: int) -> Source:
    """The source of a seed's fit: a random one is drawn anew for every seed."""
    if not p.source.nothing_kept:
        return p.source
    return replace(untrained(p.source, seed), name=p.source.name)


def source_before(p: Prepared, part: Part) -> Predictions | None:
    """What the source itself says of a part of its data.

    Raises PlanError where the floor is out of reach: even unchanged weights do not prove it.
    """
    data, retain = p.source_data, p.plan.fit.retain
    if data is None:
        return None
    if retain is not None and not p.splits.val and not p.folds():
        text = "fit.retain: too few rows for val or folds, so nothing to choose α by: remove it"
        raise PlanError([text])
    rows = data.scored(p.source.backbone, part)
    if retain is not None:
        choose([Point(0.0, {}, retention_of(data.metric, rows, rows))], p.metric, retain)
    return rows


def floor(p: Prepared) -> str:
    return "" if p.plan.fit.retain is None else f", keeping {p.plan.fit.retain:g} of the source"


def in_words(epoch: Epoch, epochs: int, seed: int) -> str:
    """One plain line an epoch."""
    val = "   ".join(f"val {k} {v:.4f}" for k, v in epoch.val.items())
    terms = "   ".join(f"{k} {v:.4f}" for k, v in epoch.terms.items())
    source = "   ".join(f"source {k} {v:.4f}" for k, v in epoch.source.items())
    best = " *" if epoch.best and epoch.val else ""
    return "   ".join(s for s in (f"seed {seed}   epoch {epoch.epoch}/{epochs}", terms, val, source) if s) + best


class Clock:
    """Seconds by stage, of a clock that cannot jump."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.before = 0.0
        self.stages: dict[str, float] = {"features": 0.0, "probe": 0.0, "fit": 0.0}

    def add(self, stages: Mapping[str, float]) -> None:
        """What an earlier process took."""
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
            self.before += seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - begin

    def seconds(self) -> dict[str, float]:
        return {**self.stages, "total": self.before + time.monotonic() - self.start}


def environment(p: Prepared) -> Environment:
    """Return what results depend on beside the plan."""
    names = ("torch", "torchvision", "timm", "transformers", "numpy", "scikit-learn", "scipy", "Pillow")
    return Environment(
        regraft=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        versions={n: version(n) for n in names},
        device=str(p.compute.device),
        device_name=torch.cuda.get_device_name() if p.compute.device.type == "cuda" else platform.machine(),
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
        byteorder=sys.byteorder,
        source_digest=p.source.digest,
        source_data_digest=p.source_data.all_digest if p.source_data else None,
        data_digest=p.splits.digest,
        test_digest=p.splits.test_digest,
    )
