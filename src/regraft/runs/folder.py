"""A run folder: plain files, no pickle; never renamed, never overwritten, one writer at a time.

plan.toml  environment.json  manifest.jsonl  check.json  loading.json  history.jsonl  predictions.csv
result.json (written last, and whole or not at all)  log.txt
gallery/ {gallery.json, suspects.json, *.jpg}  the worst errors on test, labels that are probably wrong
report.html, where it was asked for
model/ {model.safetensors, config.json, preprocess.json, labels.json}
checkpoints/, resumes.jsonl, lock   while it is not finished; see checkpoints.py and locks.py
"""

from __future__ import annotations

import csv
import os
import shlex
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import DiskError, UsageError, shorten
from ..io import guarded, locks
from ..io.atomic import disk_errors, write_file
from ..io.command_lines import command
from ..io.csv_cells import escaped
from ..io.json_files import dumps, plain
from ..io.streams import complain
from ..plugins import module, names
from . import records
from .model_files import TaskState
from .result import FILE as RESULT
from .result import Unfinished
from .result_parts import Resumed

if TYPE_CHECKING:
    from ..tasks import Task


MADE_LATER = ("exports", "mlruns", *names("trackers"))  # folders in a run that other commands make

LOCK = "lock"

T = TypeVar("T")


class RunFolder:
    """A run folder, locked while it is written: a new one, or with ``resume`` one that an earlier
    process left unfinished. Use as a context manager; ``warn`` hears of lines that are lost."""

    def __init__(self, path: Path, *, resume: bool = False, warn: Callable[[str], None] | None = None) -> None:
        self.path, self.resume = path, resume
        self.warn = warn or complain
        self.lost: set[str] = set()  # files that a line could not be added to

    def __enter__(self) -> RunFolder:
        """Raises UsageError where the folder exists or is held, DiskError where it cannot be made."""
        if not self.resume:
            check_new(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=self.resume)
        except FileExistsError as error:
            raise UsageError(f"{self.path} was made by another run just now") from error
        except OSError as error:
            raise DiskError(f"{self.path} cannot be written: {error.strerror}") from error
        gone = locks.take(self.path / LOCK)
        if gone is not None:
            self.log(f"the lock of {gone} was taken over: it is gone")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None and not self.finished():
            self.log("stopped\n" + "".join(traceback.format_exception(error)))
            status: Literal["failed", "interrupted"]
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(DiskError):  # the error on its way says more
                self.json(RESULT, Unfinished(status=status, error=str(error)).model_dump())
        locks.release(self.path / LOCK)

    def finished(self) -> bool:
        return status_of(self.path) == "finished"

    def text(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with disk_errors(path):
            write_file(path, text)

    def json(self, name: str, value: Any) -> None:
        self.text(name, dumps(plain(value), indent=2) + "\n")

    def append(self, name: str, value: Any) -> None:
        """One more line of a .jsonl file, synced."""
        self._add(name, dumps(plain(value)) + "\n")

    def log(self, line: str) -> None:
        self._add("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _add(self, name: str, text: str) -> None:
        """A disk that is full loses lines, not the run: it is said once a file, and goes on."""
        path = self.path / name
        before = self.size(name)
        try:
            with path.open("ab") as file:
                file.write(text.encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, before)  # no half lines
            if name not in self.lost:
                self.lost.add(name)
                self.warn(f"{path} cannot be written ({error.strerror}); the run goes on without it")

    def size(self, name: str) -> int:
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def cut(self, name: str, size: int) -> None:
        """Drop what a file has beyond ``size`` bytes."""
        if self.size(name) > size:
            os.truncate(self.path / name, size)

    def resumes(self) -> list[Resumed]:
        """Return the lines of resumes.jsonl; none if there is no such file. Raises UsageError if it is damaged."""
        return list(records.read_lines(self.path, "resumes.jsonl", Resumed))

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True) -> None:
        """A table; with ``escape`` no cell of it is a formula to a spreadsheet."""
        cell = escaped if escape else (lambda value: value)
        with (self.path / name).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([cell(value) for value in row] for row in chain([header], rows))


class Unwritten(RunFolder):
    """The run folder for a process that is not the first: it writes nothing."""

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def text(self, name: str, text: str) -> None:
        pass

    def append(self, name: str, value: Any) -> None:
        pass

    def log(self, line: str) -> None:
        pass

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True) -> None:
        pass

    def cut(self, name: str, size: int) -> None:
        pass

    def remove(self, name: str) -> None:
        pass


def check_new(path: Path) -> None:
    """Raises UsageError, with the commands that help, where a run folder is already there, and
    DiskError where none can be made."""
    if path.exists() or path.is_symlink():
        locks.refuse(path / LOCK)
        other = path.with_name(f"{path.name}-2")
        go_on = f"go on with `{command('fit', '--resume', path)}`"
        look = f"look at it with `{command('list', path.parent)}`"
        raise UsageError(
            f"{path} exists and is never overwritten: {go_on if can_resume(path) else look}, or write "
            f"elsewhere with --out {shlex.quote(str(other))}"
        )
    check_writable(next(d for d in path.absolute().parents if d.exists()))


def check_writable(folder: Path) -> None:
    """Raises DiskError where no file can be made, before anything slow begins."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(f"{folder} cannot be written ({error.strerror}): choose another --out") from error


def can_resume(path: Path) -> bool:
    """Whether a folder is a run that was left unfinished."""
    return guarded.is_file(path, "plan.toml") and status_of(path) != "finished"


def status_of(run: Path) -> str:
    """What result.json says; "" where there is none that reads."""
    try:
        result = guarded.read_json(run, RESULT)
    except guarded.NotReadError:
        return ""
    return records.text_in(result, "status") if isinstance(result, dict) else ""


def read_json(run: Path, name: str, kind: type[T]) -> T:
    """Return the record in a JSON file of a run. Raises UsageError if the file is missing or damaged."""
    value = records.read(run, name, kind)
    if value is None:
        raise UsageError(f"{guarded.shown(run, name)} cannot be read: there is no such file; is this a run folder?")
    return value


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run's model."""
    return guarded.is_file(folder, "model/config.json")


def read_task(run: Path) -> Task:
    """Return the task that a run learnt. Raises UsageError where its model folder is damaged."""
    name = "model/labels.json"
    state = read_json(run, name, TaskState)
    values = state.model_dump()
    try:
        plug_in = module("tasks", state.task)
    except LookupError as error:
        raise guarded.damaged(run, name, error) from error
    if why := records.problem(getattr(plug_in, "State", TaskState), values):
        raise guarded.damaged(run, name, why)
    task: Task = plug_in.restore(values)
    if task.primary not in task.metrics:
        raise guarded.damaged(run, name, f"primary is {task.primary}, which is none of {task.name}")
    if unknown := set(task.metrics) - set(names("metrics")):
        raise guarded.damaged(run, name, f"there is no metric {shorten(sorted(unknown))}")
    return task


def runs_below(folder: Path) -> list[Path]:
    """Run folders in a folder, by name."""
    return sorted(p.parent for p in folder.glob("*/plan.toml"))
