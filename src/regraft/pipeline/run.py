"""The pipeline: plan → data, source → graft → probe → fit → evaluate → run folder.

:mod:`regraft.pipeline.prepare`, :mod:`regraft.pipeline.train` and :mod:`regraft.pipeline.finish` are its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..compute import distributed
from ..compute.device import choose_device
from ..compute.malloc import freed_memory_kept
from ..errors import DivergedError, PlanError, RegraftError, UsageError
from ..io import guarded
from ..io.command_lines import command
from ..io.locks import refuse
from ..io.log import LOGGER, lines_to, silence
from ..model.types import Source
from ..plan.schema import Plan, ResolvedPlan
from ..runs.folder import LOCK, MADE_LATER, RunFolder, Unwritten, check_new, check_writable, read_json, status_of
from ..runs.side_files import Environment
from ..training.checkpoints import CheckpointManager
from ..training.signals import Interrupted, stopping
from .arms import ProgressDisplay
from .finish import Clock, describe, environment, finish
from .job import Job
from .prepare import prepare
from .resume import PreviousRun, digest_of_plan, previous_run, refuse_changes
from .train import Trainer


@dataclass(frozen=True)
class RunOptions:
    """Options of a run beside its plan."""

    resume: bool = False  # go on with a run that was left, bit for bit; leave a finished one alone
    accept_changes: bool = False  # of a run that is resumed: changed data or plan are recorded, not refused
    source: Source | None = None  # in place of the plan's reference, where it is a module of one's own
    track: ProgressDisplay | None = None  # shows how far fits are; None: the log has a line an epoch


def run(plan: Plan, options: RunOptions | None = None) -> Path:
    """Make a finished run folder of data and source, and return its path. The logger "regraft" reports.

    Raises any RegraftError, and Interrupted at a signal. Before training nothing is written; a folder
    that was already made then says in its result.json that the run failed, and why.
    """
    options = options or RunOptions()
    if plan.run.out is None:
        raise UsageError("say where the run goes: --out runs/NAME")
    out = Path(plan.run.out)
    wanted = None if plan.run.processes == "auto" else plan.run.processes
    distributed.join(wanted, cpu=choose_device(plan.run.device)[0].type == "cpu")
    try:
        with distributed.naming_a_lost_rank(str(out)):
            if distributed.is_rank0():
                return run_rank(plan, out, options)
            with silence():
                return run_rank(plan, out, replace(options, track=None))
    finally:
        distributed.leave()


def run_rank(plan: Plan, out: Path, options: RunOptions) -> Path:
    """Run this rank's part, unless the folder is finished."""
    state = folder_state(out, resume=options.resume) if distributed.is_rank0() else ""
    state = distributed.broadcast(state)
    return out if state == "finished" else run_job(plan, out, options, begun=state == "begun")


def folder_state(out: Path, *, resume: bool) -> str:
    """Return the state of a folder: "new", "made" (a run that wrote no plan), "begun" or "finished".

    Raises UsageError or DiskError if no run can be made or resumed there.
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
def run_job(plan: Plan, out: Path, options: RunOptions, *, begun: bool) -> Path:
    """Prepare, train and finish; by one process or by each of several that have met."""
    before = None
    if plan.run.shard and distributed.world_size() == 1:
        text = "run.shard: one process has nobody to divide weights with: --nproc N, or run.shard=false"
        raise PlanError([text])
    clock = Clock()
    with clock("prepare"):
        if begun:
            before = previous_run(out, plan, accept_changes=options.accept_changes)
            plan = before.plan
        job = prepare(plan, source=options.source)
        if before is not None:
            before = refuse_changes(before, job, accept_changes=options.accept_changes)
        distributed.all_reduce_sum(0.0)  # every rank has read what rank 0 now writes
    mine = RunFolder(out, resume=options.resume) if distributed.is_rank0() else Unwritten(out)
    # inside the folder's block, which writes down why a run failed
    with (
        mine as folder,
        lines_to(folder.log, progress=False),
        distributed.naming_a_lost_rank(str(out)),
        stopping() as signals,
    ):

        def about() -> dict[str, Any]:
            """Return what checkpoints keep of the run as a whole."""
            return {
                "history": folder.size("history.jsonl"),
                "reuse": dict(job.memo.decisions),
                "seconds": clock.stages,
                "data": job.data.splits.digest,
                "plan": digest_of_plan(job.plan),
            }

        own_arms = plan.run.spread == "arms" and distributed.world_size() > 1
        checkpoints = CheckpointManager(
            folder.path / "checkpoints",
            *plan.run.checkpoint_interval,
            about=about,
            writes=distributed.is_rank0() and not own_arms,
            divided=plan.run.shard,
            signals=signals,
        )
        if before is None or before.changes:
            describe(job, folder)
        if before is not None:
            restore_progress(before, job, folder, checkpoints, clock)
        with naming_remedies(job.plan, out, checkpoints):
            trained = Trainer(job, folder, clock, checkpoints, options.track).train()
            finish(job, folder, trained, clock)
        checkpoints.clear()
    return folder.path


@contextmanager
def naming_remedies(plan: ResolvedPlan, out: Path, checkpoints: CheckpointManager) -> Iterator[None]:
    """Say how to go on where a run ends inside the block: it is out of memory, diverged or interrupted."""
    resume = command("fit", "--resume", out)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith("DataLoader worker"):  # torch sees it in the middle of a step
            raise RegraftError(
                f"a loader process was killed ({error}): go on with {resume}, and with "
                f"--workers 0 if it comes again (it may be out of memory)"
            ) from error
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "allocate memory" not in str(error):
            raise
        half = max(1, plan.fit.batch_size // 2)
        raise RegraftError(
            f"there is not enough memory ({str(error).splitlines()[0] if str(error) else 'host'}): go on "
            f"with {resume} --accept-changes --batch-size {half} --set "
            f"fit.accumulate={2 * plan.fit.accumulate}, which keeps the rows of a step, or fewer "
            f"--workers"
        ) from error
    except DivergedError as error:
        last = f"; the last good checkpoint is {checkpoints.good[-1]}" if checkpoints.good else ""
        raise DivergedError(f"{error}{last}") from error
    except Interrupted as stop:
        raise Interrupted(stop.signum, f"{stop}; go on with: {resume}") from None


BEFORE_PLAN = {LOCK, "log.txt", "result.json", "check.json", "environment.json", "loading.json", "manifest.jsonl"}


def looks_like_a_run(folder: Path) -> bool:
    """Return whether a folder has a plan, or nothing but files that a run writes before its plan."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return "plan.toml" in names or names <= BEFORE_PLAN


def restore_progress(
    before: PreviousRun, job: Job, folder: RunFolder, checkpoints: CheckpointManager, clock: Clock
) -> None:
    """Take up what an earlier process left, and report what is different."""
    folder.remove("result.json")
    checkpoints.scan()
    about = checkpoints.newest["about"] if checkpoints.newest else {}
    folder.cut("history.jsonl", about.get("history", 0))  # later lines will be written again
    job.memo.decisions.update(about.get("reuse", {}))
    clock.add(about.get("seconds", {}))
    LOGGER.info("%s is resumed; done before: %s", folder.path, ", ".join(checkpoints.parts) or "nothing")
    for change in before.changes:
        LOGGER.info("accepted: %s", change)
    was, now = read_json(folder.path, "environment.json", Environment), environment(job)
    other = [
        f"{name} {was.versions.get(name)} → {version}"
        for name, version in now.versions.items()
        if was.versions.get(name) != version
    ]
    hardware = ("device_name", "threads", "processes")
    other += [f"{k} {getattr(was, k)} → {getattr(now, k)}" for k in hardware if getattr(was, k) != getattr(now, k)]
    if other:
        LOGGER.info("the same bits are not to be expected: %s", ", ".join(other))
    record = before.record(done=list(checkpoints.parts), environment=other)
    folder.append("resumes.jsonl", record)
