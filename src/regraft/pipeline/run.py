"""The pipeline: plan → data, source → graft → probe → fit → evaluate → run folder.

:mod:`regraft.pipeline.prepare`, :mod:`regraft.pipeline.train` and :mod:`regraft.pipeline.finish` are its parts.

A resumed run has the same bits only if data, plan and source are the same. A plan's "auto" takes the value that
the run chose. Keys that change no bit may differ. Any other difference is refused and shown; with
``--accept-changes`` it is recorded in resumes.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..compute import distributed
from ..compute.device import choose_device
from ..compute.malloc import freed_memory_kept
from ..errors import DataError, DivergedError, RegraftError, SourceError, UsageError, shorten
from ..io import guarded
from ..io.command_lines import command
from ..io.locks import refuse
from ..io.log import LOGGER, lines_to, silence
from ..model.types import Source
from ..plan.read import check, read_run_plan, refuse_ranges
from ..plan.schema import Plan, ResolvedPlan, TunePlan, keys_of
from ..runs.folder import LOCK, MADE_LATER, RunFolder, Unwritten, check_new, check_writable, read_json, status_of
from ..runs.side_files import Environment, ManifestRow
from ..training.checkpoints import CheckpointManager
from ..training.signals import Interrupted, stopping
from .arms import ProgressDisplay
from .finish import Clock, describe, environment, finish
from .job import Job
from .prepare import check_world_size, prepare
from .train import Trainer

if TYPE_CHECKING:
    from ..data.types import Splits


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
    refuse_ranges(plan)
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
    check_world_size(plan, distributed.world_size())
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


# ---------------------------------------------------------------- resuming a run


FREE = {
    "run.out",
    "run.workers",
    "run.processes",
    "run.cache",
    "run.cache_users",
    "run.cache_gb",
    "run.checkpoint_every",
    "run.escape_csv",
    "run.shard",
    *(f"tune.{key}" for key in keys_of(TunePlan)),
}


@dataclass(frozen=True)
class PreviousRun:
    """A run folder that was left."""

    run: Path
    plan: Plan  # to go on with
    changes: tuple[str, ...] = ()  # that were accepted

    def record(self, **more: Any) -> dict[str, Any]:
        """Return a line of resumes.jsonl."""
        return {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "changes": list(self.changes), **more}


def previous_run(run: Path, given: Plan, *, accept_changes: bool) -> PreviousRun:
    """Return the unfinished run, with the plan to resume by.

    Raises UsageError with every difference that was not accepted.
    """
    before = read_run_plan(run, allow_code=given.allow_code)
    tree = given.model_dump(exclude_none=True)
    for section in ("fit", "run"):
        for key, value in tree[section].items():
            if value == "auto" and key != "seeds":  # no value stands for it: it is the plan
                tree[section][key] = getattr(getattr(before, section), key)
    plan = check(tree, allow_code=given.allow_code)
    if before.run.seeds == "auto" and plan.run.seeds != "auto":
        raise UsageError(
            f"{run} left its number of seeds to the verdict and may have looked at it, so it cannot go on with "
            f"{plan.run.seeds}: go on with {command('fit', '--resume', run)}, or begin another run with --out"
        )
    changes = differences(before, plan)
    if changes and not accept_changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise UsageError(
            f"{run} was begun with another plan:\n{listed}\ngo on as it was with "
            f"{command('fit', '--resume', run)}, or with these changes, which are recorded, with --accept-changes"
        )
    return PreviousRun(run, plan, tuple(changes))


def digest_of_plan(plan: Plan) -> str:
    """Return the sha256 over all keys that decide a run's bits."""
    return digest_of({k: v for k, v in flat(plan.model_dump()).items() if k not in FREE and k != "evaluate.slices"})


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the sha256 over plain values by key, in any order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def differences(before: Plan, now: Plan) -> list[str]:
    """Return the keys whose values differ, as "fit.epochs: 3 → 5"."""
    old, new = flat(before.model_dump()), flat(now.model_dump())
    return [
        f"{key}: {shown(old.get(key))} → {shown(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE and not same(old.get(key), new.get(key))
    ]


def flat(tree: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{key}.{name}".strip(".")
        found |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal, or paths of one file."""
    if a == b:
        return True
    both = isinstance(a, str) and isinstance(b, str) and Path(a).exists() and Path(b).exists()
    return both and Path(a).samefile(b)


def shown(value: Any) -> str:
    if value is None or value == {}:
        return "not set"
    return str(list(value) if isinstance(value, tuple) else value)


def refuse_changes(before: PreviousRun, job: Job, *, accept_changes: bool) -> PreviousRun:
    """Return the run with changes of data and source among the accepted ones.

    Raises DataError or SourceError with the difference, if changes are not accepted.
    """
    was = read_json(before.run, "environment.json", Environment)
    changes = list(before.changes)
    accept = "put it back, or go on with --accept-changes, which records it"
    if was.data_digest != job.data.splits.digest:
        rows = data_changes(before.run, job.data.splits)
        if not accept_changes:
            raise DataError(f"{job.plan.data.path} has changed since {before.run} began: {rows}; {accept}")
        changes.append(f"data: {rows}")
    now = job.source_data.all_digest if job.source_data else None
    if was.source_data_digest != now:
        if not accept_changes:
            raise DataError(f"the source data have changed since {before.run} began: {accept}")
        changes.append("the source data")
    if was.source_digest != job.source.digest:
        if not accept_changes:
            raise SourceError(f"the weights of {job.source.name} have changed since {before.run} began: {accept}")
        changes.append(f"the weights of {job.source.name}")
    return PreviousRun(before.run, before.plan, tuple(changes))


def data_changes(run: Path, splits: Splits) -> str:
    """Return a sentence on rows that were added, removed or edited since a run's manifest was written."""
    from ..data.splitting import manifest_line, read_manifest

    def key(row: ManifestRow) -> tuple[Any, ...]:
        return row.hash, tuple(row.cells)

    old = list(read_manifest(run / "manifest.jsonl"))
    new = [ManifestRow(**manifest_line(s, e)) for s in ("train", "val", "test") for e in getattr(splits, s)]
    both = Counter(map(key, old)) & Counter(map(key, new))

    def left(rows: list[ManifestRow]) -> list[ManifestRow]:
        """Return the rows beyond those that both have; a row that only moved is not one."""
        spent = both.copy()
        found = []
        for row in rows:
            if spent[key(row)]:
                spent[key(row)] -= 1
            else:
                found.append(row)
        return found

    gone = {row.where: row for row in left(old)}
    come = {row.where: row for row in left(new)}
    edited = [edit(where, gone[where], come[where]) for where in gone if where in come]
    parts = {
        "edited": edited,
        "added": [w for w in come if w not in gone],
        "removed": [w for w in gone if w not in come],
    }
    words = [
        f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} {what} ({shorten(rows, 3)})"
        for what, rows in parts.items()
        if rows
    ]
    moved = Counter((*key(r), r.split) for r in new) - Counter((*key(r), r.split) for r in old)
    moved = Counter({k: n for k, n in moved.items() if both[k[:2]]})
    words += [f"{moved.total()} in another split than before"] if moved else []
    return ", ".join(words)


def edit(where: str, old: ManifestRow, new: ManifestRow) -> str:
    """Return a row with what differs in it."""
    a, b = ";".join(old.cells), ";".join(new.cells)
    told = [f"label {a} → {b}"] if a != b else []
    told += ["content"] if old.hash != new.hash else []
    return f"{where}: {', '.join(told)}"
