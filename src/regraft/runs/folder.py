"""A run folder: plain files, no pickle; never renamed, never overwritten, one writer at a time.

plan.toml  environment.json  manifest.jsonl  check.json  loading.json  history.jsonl  predictions.csv  log.txt
predictions-SEED.csv   of each further seed
result.json   written last, and whole or not at all; its schema is result.py
gallery/ {gallery.json, suspects.json, *.jpg}   worst errors on test, suspected label errors
report.html   after ``regraft report``
model/ {model.safetensors, config.json, preprocess.json, labels.json}
checkpoints/, resumes.jsonl, lock   until the run is finished; see training/checkpoints.py and io/locks.py
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

from ..errors import DiskError, UsageError
from ..io import guarded, locks
from ..io.atomic import disk_errors, write_file
from ..io.command_lines import command
from ..io.csv_cells import escaped
from ..io.json_files import dumps, plain
from ..io.streams import complain
from ..plugins import module, names
from . import records
from .model_files import TaskState, state_of_task
from .result import FILE as RESULT
from .result import Unfinished
from .result_parts import Resumed

if TYPE_CHECKING:
    from ..tasks import Task


MADE_LATER = ("exports", "mlruns", *names("trackers"))  # folders in a run that other commands make

LOCK = "lock"

T = TypeVar("T")


class RunFolder:
    """A run folder that this process writes and locks; a context manager.

    It is new, or with ``resume`` one that an earlier process left unfinished. ``warn`` takes the message that lines of
    a file are lost.
    """

    def __init__(self, path: Path, *, resume: bool = False, warn: Callable[[str], None] | None = None) -> None:
        self.path, self.resume = path, resume
        self.warn = warn or complain
        self.lost: set[str] = set()  # names of files that lack a line

    def __enter__(self) -> RunFolder:
        """Make and lock the folder. Raises UsageError if it exists or is locked, DiskError if it cannot be made."""
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
        if error is not None and status_of(self.path) != "finished":
            self.log("stopped\n" + "".join(traceback.format_exception(error)))
            status: Literal["failed", "interrupted"]
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(DiskError):  # the error that is being raised tells more
                self.json(RESULT, Unfinished(status=status, error=str(error)).model_dump())
        locks.release(self.path / LOCK)

    def text(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with disk_errors(path):
            write_file(path, text)

    def json(self, name: str, value: Any) -> None:
        """Write a value as JSON, whole or not at all; a number that is not finite becomes null."""
        self.text(name, dumps(plain(value), indent=2) + "\n")

    def append(self, name: str, value: Any) -> None:
        """Append a value to a .jsonl file as one line, and sync the file."""
        self._add(name, dumps(plain(value)) + "\n")

    def log(self, line: str) -> None:
        """Append a line with the time to log.txt."""
        self._add("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _add(self, name: str, text: str) -> None:
        """Append text to a file. If the disk is full, warn once for each file and let the run go on without it."""
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
        """Return a file's bytes; 0 if there is no such file."""
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def cut(self, name: str, size: int) -> None:
        """Truncate a file to ``size`` bytes if it is longer."""
        if self.size(name) > size:
            os.truncate(self.path / name, size)

    def resumes(self) -> list[Resumed]:
        """Return the lines of resumes.jsonl; none if there is no such file. Raises UsageError if it is damaged."""
        return list(records.read_lines(self.path, "resumes.jsonl", Resumed))

    def remove(self, name: str) -> None:
        """Delete a file, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True) -> None:
        """Write a table; with ``escape`` no cell of it is a formula to a spreadsheet."""
        cell = escaped if escape else (lambda value: value)
        with (self.path / name).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([cell(value) for value in row] for row in chain([header], rows))


class Unwritten(RunFolder):
    """A run folder on a rank other than 0: it writes nothing, because rank 0 writes."""

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def text(self, name: str, text: str) -> None:
        pass

    def _add(self, name: str, text: str) -> None:
        pass

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True) -> None:
        pass

    def cut(self, name: str, size: int) -> None:
        pass

    def remove(self, name: str) -> None:
        pass


def check_new(path: Path) -> None:
    """Check that a run folder can be made.

    Raises UsageError, with the commands that help, if the folder exists, DiskError if the disk takes no file.
    """
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
    """Check that a folder takes files, before slow work begins. Raises DiskError."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(f"{folder} cannot be written ({error.strerror}): choose another --out") from error


def can_resume(path: Path) -> bool:
    """Return whether a folder is an unfinished run."""
    return guarded.is_file(path, "plan.toml") and status_of(path) != "finished"


def status_of(run: Path) -> str:
    """Return ``status`` of result.json; "" if the file is missing or damaged."""
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
    """Return whether a folder holds a run's model."""
    return guarded.is_file(folder, "model/config.json")


def read_task(run: Path) -> Task:
    """Return the task that a run learnt. Raises UsageError if its model folder is damaged."""
    name = "model/labels.json"
    try:
        tasks = module("tasks", read_json(run, name, TaskState).task)
    except LookupError as error:
        raise guarded.damaged(run, name, error) from error
    state = read_json(run, name, state_of_task(tasks))
    try:
        task: Task = tasks.restore(state.model_dump())
    except ValueError as error:
        raise guarded.damaged(run, name, error) from error
    if task.primary not in task.metrics:
        raise guarded.damaged(run, name, f"primary is {task.primary}, which is none of {task.name}")
    return task


def runs_below(folder: Path) -> list[Path]:
    """Return the run folders in a folder, by name."""
    return sorted(p.parent for p in folder.glob("*/plan.toml"))
