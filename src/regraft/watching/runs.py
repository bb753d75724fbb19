"""The run folders below a folder, each with its state and, if it is finished, its headline.

Links are not followed. The name of a run is its path below the folder. Only names that a search found lead to a
run, so that a name which a request makes up leads nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import UsageError, printable
from ..io import guarded
from ..io.json_files import plain
from ..runs.folder import MADE_LATER
from .following import ENDED, fault, primary, read_lines, state_of

MARKS = ("plan.toml", "environment.json", "result.json", "history.jsonl", "lock")

MAX_DEPTH, MAX_FOLDERS = 6, 20_000  # of a search


class Runs:
    """The runs below a folder. Each request searches again; a run's record is reused until its files change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.shown = folder
        self.cached: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.lock = Lock()  # requests come in threads

    def all(self) -> list[dict[str, Any]]:
        """Return a record for each run, by name."""
        with self.lock:
            records = {name: self._record(name, path) for name, path in sorted(search(self.folder))}
            self.cached = {name: self.cached[name] for name in records if name in self.cached}
        return list(records.values())

    def path(self, name: str) -> Path:
        """Return the folder of a run. Raises UsageError for a name that no search finds."""
        for known, path in search(self.folder):
            if known == name:
                return path
        raise UsageError(f'no run is called "{printable(name)}" below {self.shown}')

    def safe(self, name: str) -> Path:
        """Return the folder of a run whose files all lie in it. Raises UsageError for links that lead elsewhere."""
        path = self.path(name)
        guarded.check_folder(path, leave=MADE_LATER)
        return path

    def _record(self, name: str, path: Path) -> dict[str, Any]:
        now = signature(path)
        before, record = self.cached.get(name, (None, {}))
        if before != now or record["state"] not in ENDED:
            record = summary(name, path)  # no file tells whether a process lives
            self.cached[name] = now, record
        return record


def search(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, folder) of every run, without entering a run, a link or a hidden folder."""
    seen, waiting = 0, [(folder, 0)]
    while waiting and seen < MAX_FOLDERS:
        here, depth = waiting.pop()
        seen += 1
        try:
            entries = list(os.scandir(here))
        except OSError:
            continue
        names = {e.name for e in entries}
        if here != folder and is_run(names):
            yield name_of(here.relative_to(folder)), here
            continue
        if depth < MAX_DEPTH:
            waiting += [
                (Path(e.path), depth + 1)
                for e in entries
                if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)
            ]


def is_run(names: set[str]) -> bool:
    """Return whether a folder with these files is a run.

    A plan alone is not enough, because a user may put one anywhere; ``regraft curve`` makes folders of another kind.
    """
    if "curve.json" in names:
        return False
    return bool(names & {"result.json", "history.jsonl", "lock"}) or ({"plan.toml", "environment.json"} <= names)


def stats(path: Path) -> dict[str, os.stat_result]:
    """Return the state of a run's folder, named "", and of its files by name."""
    found = {}
    for name in ("", *MARKS, "log.txt"):
        with suppress(OSError):
            found[name] = (path / name).lstat()
    return found


def signature(path: Path) -> dict[str, tuple[int, int, int]]:
    """Return a value that changes when a file changes that a record is made of."""
    return {name: (s.st_mtime_ns, s.st_size, s.st_ino) for name, s in stats(path).items()}


def summary(name: str, path: Path) -> dict[str, Any]:
    """Return a line of the list; that of a damaged run gives the reason."""
    record: dict[str, Any] = {"name": name, "shown": printable(name), "changed": changed(path)}
    try:
        state, words, _, result = state_of(path)
        record |= {"state": state, "words": words}
        if result is not None:
            e = result.test[result.primary]
            record |= {
                "metric": result.primary,
                **plain(asdict(e)),
                "task": result.task,
                "source": printable(result.source.name),
                "verdict": result.verdict.words,
                "seeds": len(result.seeds),
            }
        elif state == "running":
            lines = read_lines(guarded.read(path, "history.jsonl") or b"")[0]
            metric = primary(lines, None)
            vals = [line.val.get(metric) for line in lines if line.best and line.val] if metric else []
            if vals:
                record |= {"metric": f"{metric} on val, best so far", "value": plain(vals[-1])}
    except (guarded.NotReadError, OSError) as error:
        record |= {"state": "broken", "words": printable(f"{error}.")}
    except Exception as error:  # a fault of regraft: the line reports it, and the other runs are listed
        record |= {"state": "broken", "words": printable(fault(error))}
    return record


def name_of(path: Path) -> str:
    """Return what a run is called in requests: its path, escaped where its bytes are no UTF-8."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def changed(path: Path) -> float:
    """Return when the run last wrote; seconds since 1970."""
    return max((s.st_mtime for s in stats(path).values()), default=0.0)
