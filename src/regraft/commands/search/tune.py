"""Search over the ranges that a plan names, with Optuna; workers on many machines may share a study.

A trial is the plan with drawn values. It is fitted with the plan's first seed and scored without test: on val, or over
folds where there is no val. The best of many scores is optimistic, because chance helped to make it the best. The
search says so, and leaves test to the run of the winner.

OUT/ {tune.toml, leaderboard.csv, best.toml}; study.db, where no other database is named; run/, after --fit
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.engine import URL

from ...compute.malloc import freed_memory_kept
from ...errors import DataError, DivergedError, PlanError, SourceError, StudyError, UsageError
from ...io import locks
from ...io.atomic import disk_errors, write_file
from ...io.command_lines import command
from ...io.log import LOGGER
from ...pipeline.job import Figures, Job
from ...pipeline.prepare import prepare
from ...pipeline.run import FREE, RunOptions, digest_of, flat, previous_run, run
from ...pipeline.trial import Score, Watch, score_plan
from ...plan.ranges import Ranges, Value, with_values
from ...plan.read import check, ranges_of
from ...plan.schema import Plan
from ...plan.write import write_plan
from ...runs.folder import LOCK, check_new, status_of
from ...training.signals import Interrupted, stopping
from .database import Storage, error_of, open_storage, optuna_silent, read_address, shown
from .leaderboard import Leaderboard, Line, as_csv, in_words, leaderboard
from .options import TuneOptions
from .slots import Slot, Watcher, gives_way, queue_open_slots, slots_of
from .study import draw, open_study, sampler_of

BROKEN_IN_A_ROW = 5  # connections that may break in the midst of a write before the search ends

POLL_S = 5.0  # between two looks at trials of other workers, at most

ELSEWHERE = {"data.path", "data.image_root", "source.ref", "source.weights", "source_data.path"}  # content counts


# ---------------------------------------------------------------- the search


def tune(plan: Plan, options: TuneOptions | None = None) -> Leaderboard:
    """Take trials of a study until all are done, by this worker or others, and return the leaderboard.

    Raises UsageError for a folder of something else, PlanError for a plan without ranges, StudyError for a study of
    something else or a database that stays away, and Interrupted at a signal.
    """
    options, ranges = options or TuneOptions(), ranges_of(plan)
    if plan.run.out is None:
        raise UsageError("say where the search goes: --out runs/NAME")
    if not ranges:
        raise PlanError(
            'tune.ranges names nothing to search: add [tune.ranges], as "fit.epochs" = { low = 2, high = 8 }'
        )
    if plan.run.shard or plan.run.processes not in ("auto", 1):
        raise PlanError("run.processes and run.shard: one process fits a trial; start more workers with one --study")
    out = Path(plan.run.out)
    url = read_address(options.study) if options.study else URL.create("sqlite", database=str(out / "study.db"))
    is_new = check_folder(out)
    try:
        with optuna_silent(), stopping(), freed_memory_kept():
            base = prepare(plan_of(plan, {}))
            with search_folder(out, write_plan(plan), is_new=is_new, keeps_study=options.study is None):
                storage = open_storage(url, options.wait_s, options.heartbeat)
                about = about_study(plan, ranges, base, options.heartbeat)
                direction: Literal["minimize", "maximize"]
                direction = "maximize" if base.data.metric.higher_is_better else "minimize"
                study = open_study(storage, options.name or out.resolve().name, direction, about)
                text(out / "tune.toml", write_plan(plan))
                slots = Search(plan, ranges, base, study, storage, options.heartbeat).search()
                board = leaderboard(base.data, study, shown(url), slots, out)
                text(out / "leaderboard.csv", as_csv(board))
                winner = best_plan(plan, board.lines[0])
                reason = f"tune: trial {board.lines[0].trial} of {board.study}"
                text(out / "best.toml", write_plan(winner, dict.fromkeys(board.lines[0].settings, reason)))
                return fit_winner(board, winner, out) if options.fit else board
    except Interrupted as stop:
        words = "every finished trial is kept, and the one under way will be taken again; go on with the same command"
        raise Interrupted(stop.signum, f"{stop}: {words}") from None


def plan_of(plan: Plan, values: Mapping[str, Value]) -> Plan:
    """Return the plan of a trial, without ranges. Raises PlanError for values that do not go together."""
    # without defaults: what a drawn recipe sets would not stand against them
    tree = with_values(plan.model_dump(exclude_none=True, exclude_unset=True), values)
    return check(tree, where="the trial", allow_code=plan.allow_code)


def best_plan(plan: Plan, line: Line) -> Plan:
    """Return the winner's plan, whose run goes into the search's folder."""
    best = plan_of(plan, line.settings)
    return best.with_sections(run=best.run.model_copy(update={"out": str(Path(str(plan.run.out)) / "run")}))


def about_study(plan: Plan, ranges: Ranges, base: Job, heartbeat_s: int) -> dict[str, Any]:
    """Return what a study is about: what its workers must agree on, by a name that an error can say.

    Paths may differ between machines, so that the content of data and weights counts. Keys with a range have no value
    of the plan's own.
    """
    free = FREE | ELSEWHERE | set(ranges)
    kept = {k: v for k, v in flat(plan.model_dump()).items() if k not in free and not k.startswith("tune.")}
    search = plan.tune.model_dump(exclude={"trials"})
    return {
        "data": digest_of(
            {"target": base.data.splits.digest, "source": base.source_data and base.source_data.all_digest}
        ),
        "source": base.source.digest,
        "plan": digest_of(kept),
        "ranges": digest_of({k: asdict(v) for k, v in ranges.items()}),
        **{f"tune.{k}": v for k, v in search.items() if k != "ranges"},
        "heartbeat": heartbeat_s,
    }


class WithdrawnError(Exception):
    """The end of an attempt without a score: it failed, or it was surplus. The study has the reason."""


@dataclass
class Search:
    """A worker of a study."""

    plan: Plan
    ranges: Ranges
    base: Job  # of the plan without drawn values; trials take data and source from it
    study: optuna.Study
    storage: Storage
    heartbeat_s: int
    line: str = ""  # of the trial under way, for the log

    def search(self) -> list[Slot]:
        """Take trials until all are done, and return their slots."""
        most, watcher, told, broken = self.plan.tune.trials, Watcher(self.study, self.heartbeat_s), False, 0
        self.study.pruner = self.pruner()
        while True:
            slots = watcher.look()
            queue_open_slots(self.study, slots, most)
            mine = slots_of(self.study.get_trials(deepcopy=False))
            waits = any(t.state == TrialState.WAITING for s in mine if s.number < most for t in s.live)
            if waits or len(mine) < most:
                told = False
                broken = 0 if self.take_one() else broken + 1
                if broken > BROKEN_IN_A_ROW:
                    raise StudyError(
                        f"the connection to {shown(self.storage.connector.url)} broke {broken} times in a row: every "
                        "finished trial is kept there; go on with the same command"
                    )
                continue
            others = [s.number for s in mine if s.number < most and s.ended is None and s.live]
            if not others:
                return [s for s in mine if s.number < most]
            if not told:
                LOGGER.info("waiting for trials of other workers: %s", ", ".join(map(str, others)))
                told = True
            time.sleep(min(POLL_S, self.heartbeat_s / 2))

    def take_one(self) -> bool:
        """Take one trial, if one is left; return False if the connection broke in the midst of a write."""
        self.line = ""
        try:
            self.study.optimize(self.attempt, n_trials=1, catch=(WithdrawnError,))
        except Exception as raised:  # Optuna may raise another error over that of its storage; see error_of
            error = error_of(raised)
            if isinstance(error, StorageInternalError):
                LOGGER.info("the connection to the database broke: the trial will be taken again")
                return False
            if not isinstance(error, UpdateFinishedTrialError) and not str(error).startswith("Cannot tell a"):
                if error is raised:
                    raise
                raise error from None
            self.line = "a trial was given to another worker: this one gave no sign of life for too long"
        if self.line:  # after the study has it
            LOGGER.info("%s", self.line)
        return True

    def attempt(self, trial: optuna.Trial) -> float:
        """Draw values, fit and return the score. Raises WithdrawnError for an attempt without one."""
        self.storage.record_first_heartbeat(trial._trial_id)  # before the mark that says so
        attempts = slots_of(self.study.get_trials(deepcopy=False))
        slot = next(s for s in attempts if trial.number in (t.number for t in s.attempts))
        trial.set_user_attr("slot", slot.number)
        if gives_way(slot, trial.number, self.plan.tune.trials):
            trial.set_user_attr("surplus", True)
            raise WithdrawnError
        began = time.monotonic()
        try:
            values = self.draw(trial, slot.number)
            score = self.score(plan_of(self.plan, values), lambda step, figures: self.report(trial, step, figures))
        except KeyboardInterrupt:
            with suppress(StudyError):
                trial.set_user_attr("interrupted", True)
            raise
        except optuna.TrialPruned:
            self.line = f"trial {slot.number}   pruned   {in_words(trial.params)}"
            raise
        except (DivergedError, PlanError, SourceError, DataError, MemoryError, torch.OutOfMemoryError) as error:
            self.fail(trial, slot.number, first_line(error) or "there is not enough memory")
        value = score.figures[self.primary]
        if not all(map(math.isfinite, score.figures.values())):
            self.fail(trial, slot.number, f"its {self.primary} or its loss is not finite")
        trial.set_user_attr("loss", score.figures["loss"])
        seconds = time.monotonic() - began
        self.line = f"trial {slot.number}   {self.primary} {value:.4f}   {seconds:.1f} s   {in_words(trial.params)}"
        return value

    @property
    def primary(self) -> str:
        """Return the name of the metric that the search is after."""
        return self.base.data.task.primary

    def draw(self, trial: optuna.Trial, slot: int) -> dict[str, Value]:
        """Return a value of each range. A repeated attempt keeps those that were drawn before."""
        values = {}
        for key, own in self.ranges.items():
            self.study.sampler = sampler_of(self.plan.tune.sampler, self.plan.tune.seed, slot, key)
            values[key] = draw(trial, key, own)
        return values

    def score(self, plan: Plan, watch: Watch) -> Score:
        """Return the score of a trial's plan. What no range changes comes from the base."""
        tables = {key.partition(".")[0] for key in self.ranges}
        if "source" not in tables:  # else a source has its own best layout
            plan = plan.with_sections(run=self.base.plan.run)
        return score_plan(
            plan,
            source=None if "source" in tables else self.base.source,
            data=None if "task" in tables else (self.base.data.splits, self.base.data.task),
            watch=watch,
        )

    def report(self, trial: optuna.Trial, step: int, figures: Figures) -> None:
        """Report the figures of an epoch or a fold. Raises TrialPruned for a trial that is to end."""
        if not math.isfinite(figures[self.primary]):
            return
        trial.report(figures[self.primary], step)
        if trial.should_prune():
            raise optuna.TrialPruned

    def fail(self, trial: optuna.Trial, slot: int, reason: str) -> None:
        """Write why a trial has no score, and end it. Raises WithdrawnError."""
        trial.set_user_attr("reason", reason)
        self.line = f"trial {slot}   failed ({reason})   {in_words(trial.params)}"
        raise WithdrawnError

    def pruner(self) -> optuna.pruners.BasePruner:
        """Return the plan's pruner, for as many epochs or folds as a trial can have."""
        if self.plan.tune.pruner == "none":
            return optuna.pruners.NopPruner()
        epochs = self.ranges.get("fit.epochs")
        steps = int(max(map(float, epochs.ends))) if epochs is not None else self.base.plan.fit.epochs
        steps = steps if self.base.data.splits.val else len(self.base.data.folds())
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max(steps, 1))


def first_line(error: BaseException) -> str:
    """Return an error as one line; of a plan's problems the first."""
    problems = error.problems if isinstance(error, PlanError) else ()
    return problems[0] if problems else next(iter(str(error).splitlines()), "")


# ---------------------------------------------------------------- the folder


def check_folder(out: Path) -> bool:
    """Return whether the folder of a search is new. Raises UsageError for one that holds something else."""
    if (out / "tune.toml").is_file():
        locks.refuse(out / LOCK)
        return False
    check_new(out)
    return True


@contextmanager
def search_folder(out: Path, plan: str, *, is_new: bool, keeps_study: bool) -> Iterator[None]:
    """Make and lock the folder of a search. A new one goes again if the block ends before a study is opened."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=not is_new)
    locks.take(out / LOCK)
    if is_new and keeps_study:  # its database is there from now on
        text(out / "tune.toml", plan)
    try:
        yield
    finally:
        locks.release(out / LOCK)
        if is_new and not (out / "tune.toml").exists():
            with suppress(OSError):
                out.rmdir()


def text(path: Path, content: str) -> None:
    """Write a file, whole or not at all. Raises DiskError."""
    with disk_errors(path):
        write_file(path, content)


def fit_winner(board: Leaderboard, winner: Plan, out: Path) -> Leaderboard:
    """Run the winner's plan into OUT/run, and return the leaderboard with the run.

    Raises UsageError if a run of another winner is there.
    """
    place = out / "run"
    begun = (place / "plan.toml").is_file()
    if begun:
        try:
            previous_run(place, winner, accept_changes=False)
        except UsageError as error:
            other = command("fit", out / "best.toml", "--out", out / "run-2")
            raise UsageError(f"{place} is of another plan than the winner's now: fit that with `{other}`") from error
    if status_of(place) != "finished":
        run(winner, RunOptions(resume=begun))
    return replace(board, run=str(place))
