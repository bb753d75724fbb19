"""A run folder: plain files, no pickle; never renamed, never overwritten, one writer at a time.

plan.toml  environment.json  manifest.jsonl  check.json  loading.json  history.jsonl  predictions.csv
result.json (written last, and whole or not at all)  log.txt
gallery/ {gallery.json, N.jpg}  the worst errors on test; report.html, where it was asked for
model/ {model.safetensors, config.json, preprocess.json, labels.json}
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import DiskError, UsageError
from .plugins import module

if TYPE_CHECKING:
    from .types import Task

SCHEMA = 1


class RunFolder:
    """A new run folder, locked while it is written. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> RunFolder:
        """Raises UsageError where the folder exists, DiskError where it cannot be made."""
        check_new(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
            (self.path / "lock").write_text(f"{os.getpid()}\n")
        except FileExistsError as error:
            raise UsageError(f"{self.path} was made by another run just now") from error
        except OSError as error:
            raise DiskError(f"{self.path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is not None and not (self.path / "result.json").exists():
            self.log("stopped\n" + "".join(traceback.format_exception(error)))
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.json("result.json", {"schema": SCHEMA, "status": status, "error": str(error)})
        (self.path / "lock").unlink(missing_ok=True)

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
        """One more line of a .jsonl file."""
        line = dumps(plain(value))
        with (self.path / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")

    def log(self, line: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with (self.path / "log.txt").open(
            "a", encoding="utf-8", errors="backslashreplace", newline="\n"
        ) as file:
            file.write(f"{stamp} {line}\n")

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        with (self.path / name).open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)


def check_new(path: Path) -> None:
    """Raises UsageError, with the commands that help, where a run folder is already there."""
    if path.exists() or path.is_symlink():
        other = path.with_name(f"{path.name}-2")
        raise UsageError(
            f"{path} exists and is never overwritten: look at it with `regraft list runs`, or "
            f"write elsewhere with --out {other}"
        )


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


def read_json(path: Path) -> Any:
    """Raises UsageError where the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}; is this a run folder?"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run's model."""
    return (folder / "model" / "config.json").is_file()


def finished(run: Path) -> Any:
    """A run's result.json. Raises UsageError for a folder that is no finished run."""
    result = read_json(run / "result.json")
    if result.get("status") != "finished":
        why = result.get("error", "no reason was kept")
        raise UsageError(f"{run} is no finished run: its status is {result.get('status')} ({why})")
    return result


def read_task(run: Path) -> Task:
    """The task that a run learnt. Raises UsageError where its model folder is damaged."""
    state = read_json(run / "model" / "labels.json")
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
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        entries = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1 for entry in entries if f'"{digest}"' in entry)
