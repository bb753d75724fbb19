"""Resuming a run: what has changed since it began.

A resumed run has the same bits only if data, plan and source are the same. A plan's "auto" takes the value that
the run chose. Keys that change no bit may differ. Any other difference is refused and shown; with
``--accept-changes`` it is recorded in resumes.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, SourceError, UsageError, shorten
from ..io.command_lines import command
from ..plan.read import check, read_run_plan
from ..plan.schema import Plan
from ..runs.folder import read_json
from ..runs.side_files import Environment, ManifestRow

if TYPE_CHECKING:
    from ..data.types import Splits
    from .job import Job


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
            if value == "auto":
                tree[section][key] = getattr(getattr(before, section), key)
    plan = check(tree, allow_code=given.allow_code)
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
    kept = {k: v for k, v in flat(plan.model_dump()).items() if k not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


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
