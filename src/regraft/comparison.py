"""Runs side by side: each on test, and its paired difference to the first on the same rows.

Read from run folders alone: nothing is predicted again, and test is not opened once more. A
difference is about the saved models, not about the methods behind them; for that there is the
verdict, which has seeds.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .data import read_manifest
from .errors import DataError, UsageError
from .evaluation import Scored, at_threshold, gain
from .plugins import module
from .runfiles import finished, read_task, reading
from .types import Estimate, Metric

if TYPE_CHECKING:
    from .types import Task

LABELS = ("id", "where", "label", "predicted")  # the columns of predictions.csv before the scores


@dataclass(frozen=True)
class Compared:
    """A run on test; ``gain`` over the first run is positive where this one is better."""

    run: str
    source: str
    primary: str
    test: Estimate
    gain: Estimate | None  # None for the first run


@dataclass(frozen=True)
class Judgement:
    path: Path
    result: dict[str, Any]
    task: Task
    rows: Scored

    @property
    def kind(self) -> dict[str, Any]:
        """What must be alike for a difference to mean anything."""
        return {
            "task": self.result["task"],
            "primary metric": self.result["primary"],
            "classes": self.result["classes"],
            "threshold": getattr(self.task, "threshold", None),
        }


def compare(runs: Sequence[str | Path]) -> list[Compared]:
    """The runs in the order given, each with its paired gain over the first.

    Raises UsageError for fewer than two runs, a run named twice, a folder that is no finished run,
    and runs whose task, primary metric, classes or test rows differ.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2:
        raise UsageError("give two runs or more: regraft compare runs/A runs/B")
    if len({p.resolve() for p in paths}) < len(paths):
        raise UsageError("the same run is named twice: give each run once")
    first = read_judgement(paths[0])
    others = map(read_judgement, paths[1:])  # one after another: each has scores of all its rows
    with reading(Path(", ".join(map(str, paths)))):
        metric = at_threshold(cast(Metric, module("metrics", first.result["primary"])), first.task)
        return [_line(first, None), *(_line(o, _gain(metric, o, first)) for o in others)]


def in_words(lines: Sequence[Compared]) -> str:
    """A table for the terminal."""
    wide = max(len(line.run) for line in lines)
    out = [f"{lines[0].primary} on test, n = {lines[0].test.n}"]
    for line in lines:
        text = f"{line.run:<{wide}}  {line.test}"
        if line.gain is not None:
            g = line.gain
            text += f"   {g.value:+.3f} [{g.low:+.3f}, {g.high:+.3f}]"
        out.append(f"{text}   {line.source}")
    out.append(
        f"Differences are to {lines[0].run}, paired on the same rows; positive is better. They are "
        f"about these models, not the methods."
    )
    return "\n".join(out)


def _line(run: Judgement, gained: Estimate | None) -> Compared:
    primary = run.result["primary"]
    test = Estimate(**run.result["test"][primary])
    return Compared(str(run.path), run.result["source"]["name"], primary, test, gained)


def _gain(metric: Metric, run: Judgement, first: Judgement) -> Estimate:
    for what, value in first.kind.items():
        if run.kind[what] != value:
            raise UsageError(
                f"{first.path} and {run.path} cannot be compared: their {what} differs ({value} "
                f"and {run.kind[what]}); compare runs of one task"
            )
    try:
        return gain(metric, run.rows, first.rows)
    except DataError as error:
        raise UsageError(
            f"{first.path} and {run.path} cannot be compared, for {error}, with the same data and "
            f"data.split_seed"
        ) from error


def read_judgement(path: Path) -> Judgement:
    """Raises UsageError for a folder that is no finished run or a damaged one."""
    result, task = finished(path), read_task(path)
    with reading(path, OSError, csv.Error):
        ids, scores = _scores(path / "predictions.csv")
        known = {r["id"]: r for r in read_manifest(path / "manifest.jsonl") if r["split"] == "test"}
        rows = [known[id_] for id_ in ids]
        if scores.shape != (len(ids), task.outputs):
            raise ValueError(f"scores of {scores.shape} for {len(ids)} rows")
        truth = task.truth(task.encode([tuple(r["cells"]) for r in rows])).numpy()
        groups = tuple(r.get("group") for r in rows)
    return Judgement(
        path, result, task,
        Scored(ids, truth, scores, groups if any(g is not None for g in groups) else None),
    )  # fmt: skip


def _scores(path: Path) -> tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.float64]]]:
    """(ids [N], scores [N, C]) of predictions.csv."""
    ids: list[str] = []
    cells = array("d")
    with path.open(encoding="utf-8", newline="") as file:
        rows = (row for row in csv.reader(file, strict=True) if row)
        header = next(rows, [])
        if tuple(header[: len(LABELS)]) != LABELS:
            raise ValueError(f"{path.name} has the columns {', '.join(header)}")
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{path.name} has {len(row)} cells in row {len(ids) + 1}")
            ids.append(row[0])
            cells.extend(map(float, row[len(LABELS) :]))
    if not ids:
        raise ValueError(f"{path.name} has no rows")
    return tuple(ids), np.frombuffer(cells).reshape(len(ids), len(header) - len(LABELS))
