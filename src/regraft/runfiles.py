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
import json
import math
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import locks
from .commands import command
from .errors import DiskError, UsageError
from .plugins import module
from .spreadsheet import escaped

if TYPE_CHECKING:
    from .types import Task

SCHEMA = 1
LOCK = "lock"


class RunFolder:
    """A run folder, locked while it is written: a new one, or with ``resume`` one that an earlier
    process left unfinished. Use as a context manager; ``warn`` hears of lines that are lost."""

    def __init__(
        self, path: Path, *, resume: bool = False, warn: Callable[[str], None] | None = None
    ) -> None:
        self.path, self.resume = path, resume
        self.warn = warn or (lambda line: print(line, file=sys.stderr, flush=True))
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is not None and not self.finished():
            self.log("stopped\n" + "".join(traceback.format_exception(error)))
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(DiskError):  # the error on its way says more
                self.json("result.json", {"schema": SCHEMA, "status": status, "error": str(error)})
        locks.release(self.path / LOCK)

    def finished(self) -> bool:
        return status_of(self.path) == "finished"

    def text(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskError(f"{path} cannot be written: {error.strerror}") from error

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
                self.warn(
                    f"{path} cannot be written ({error.strerror}); the run goes on without it"
                )

    def size(self, name: str) -> int:
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def cut(self, name: str, size: int) -> None:
        """Drop what a file has beyond ``size`` bytes."""
        if self.size(name) > size:
            os.truncate(self.path / name, size)

    def lines(self, name: str) -> list[Any]:
        """The records of a .jsonl file; none where there is no such file. Raises UsageError for one that
        is damaged."""
        path = self.path / name
        with reading(path):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            # by newlines alone: names may hold other signs that splitlines() takes for ends
            return [json.loads(line) for line in text.removesuffix("\n").split("\n") if text]

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def csv(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True
    ) -> None:
        """A table; with ``escape`` no cell of it is a formula to a spreadsheet."""
        cell = escaped if escape else (lambda value: value)
        with (self.path / name).open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
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

    def csv(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True
    ) -> None:
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
            f"{path} exists and is never overwritten: {go_on if can_go_on(path) else look}, or write "
            f"elsewhere with --out {shlex.quote(str(other))}"
        )
    check_writable(next(d for d in path.absolute().parents if d.exists()))


def check_writable(folder: Path) -> None:
    """Raises DiskError where no file can be made, before anything slow begins."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(
            f"{folder} cannot be written ({error.strerror}): choose another --out"
        ) from error


def can_go_on(path: Path) -> bool:
    """Whether a folder is a run that was left unfinished."""
    return (path / "plan.toml").is_file() and status_of(path) != "finished"


def status_of(run: Path) -> str:
    """What result.json says; "" where there is none that reads."""
    try:
        return str(json.loads((run / "result.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def dumps(value: Any, **how: Any) -> str:
    """JSON that can be written as UTF-8, whatever bytes the names of files are made of."""
    text = json.dumps(value, ensure_ascii=False, **how)
    try:
        text.encode()
    except UnicodeEncodeError:  # a name that is no UTF-8: as \\udcff, which reads back the same
        return json.dumps(value, **how)
    return text


def plain(value: Any) -> Any:
    """JSON of records and numbers; a number that is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@contextmanager
def reading(run: Path, *more: type[Exception]) -> Iterator[None]:
    """Around what reads the inside of a run's files, which anyone may have changed, and another version
    may have written: what is missing there or of another kind is a UsageError. Of ``more`` exceptions
    it is said too."""
    kinds: tuple[type[Exception], ...] = (
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, *more,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        raise UsageError(
            f"{run} is damaged, or was made by another version of regraft ({type(error).__name__}: "
            f"{error}): run it again from its plan, or see --debug for the place"
        ) from error


def read_json(path: Path) -> Any:
    """Raises UsageError where the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}; is this a run folder?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run's model."""
    return (folder / "model" / "config.json").is_file()


def finished(run: Path) -> Any:
    """A run's result.json. Raises UsageError for a folder that is no finished run."""
    result = read_json(run / "result.json")
    if not isinstance(result, dict):
        raise UsageError(f"{run / 'result.json'} is damaged: it is no JSON object")
    if result.get("status") != "finished":
        why = result.get("error", "no reason was kept")
        raise UsageError(f"{run} is no finished run: its status is {result.get('status')} ({why})")
    return result


def read_task(run: Path) -> Task:
    """The task that a run learnt. Raises UsageError where its model folder is damaged."""
    path = run / "model" / "labels.json"
    state = read_json(path)
    with reading(path):
        task: Task = module("tasks", state["task"]).restore(state)
    return task


def runs_below(folder: Path) -> list[Path]:
    """Run folders in a folder, by name."""
    return sorted(p.parent for p in folder.glob("*/plan.toml"))


# ---------------------------------------------------------------- the ledger of opened test sets


def ledger_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("REGRAFT_STATE", Path(state) / "regraft")) / "test-ledger.jsonl"


def open_test(digest: str, run: str) -> int:
    """Note that a test set was opened; → how often it has been, this time included.

    The ledger is one line an opening, appended, so that runs beside each other lose none. Where it
    cannot be written the run goes on: → 0, and the summary says so.
    """
    path = ledger_path()
    line = json.dumps({"test": digest, "run": run, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = locks.open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(handle, "r+b") as file:
            file.write((line + "\n").encode())
            file.seek(0)
            entries = file.read().split(b"\n")  # others may have written anything
    except OSError:
        return 0
    return sum(1 for entry in entries if f'"{digest}"'.encode() in entry)
