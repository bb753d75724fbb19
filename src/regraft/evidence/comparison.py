"""Comparison of runs: each on test, and its paired difference to the first run on the same rows.

It reads run folders only: it predicts nothing, and does not open test once more. Where both runs kept predictions of
three seeds or more, a difference is that of the verdict: over seeds and rows, so about the methods on such data. Else
it is about the saved models.
"""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..data.splitting import read_manifest
from ..errors import DataError, UsageError, shorten
from ..io import guarded
from ..metrics import Metric
from ..plugins import module
from ..runs.estimates import Estimate
from ..runs.folder import read_task
from ..runs.result import Result, finished
from .intervals import LEVEL
from .scoring import Predictions, at_threshold, gain
from .verdict import MIN_SEEDS, Measured, measure

if TYPE_CHECKING:
    from ..tasks import Task


SCORES = "predictions.csv"

LABELS = ("id", "where", "label", "predicted")  # the columns of predictions.csv before the scores


@dataclass(frozen=True)
class Compared:
    """A run's figure on test; ``gain`` over the first run is positive if this one is better."""

    run: str
    source: str
    primary: str
    higher_is_better: bool
    test: Estimate
    gain: Estimate | None  # None for the first run
    held_out: float | None  # the primary metric on the rows that chose; None where there are none
    held_out_by: str  # "val", "folds" or ""
    over_seeds: int = 0  # of each run, behind ``gain``; 0: it is that of the saved models


@dataclass(frozen=True)
class RunPredictions:
    """A run's predictions of its test rows, with their truth."""

    path: Path
    result: Result
    task: Task
    rows: Predictions
    seeds: list[Predictions]  # of every seed, ``rows`` first; ``rows`` alone where others were not kept

    @property
    def kind(self) -> dict[str, Any]:
        """Return the facts that two runs must share to be compared."""
        return {
            "task": self.result.task,
            "primary metric": self.result.primary,
            "classes": self.result.classes,
            "threshold": getattr(self.task, "threshold", None),
        }


def compare(runs: Sequence[str | Path]) -> list[Compared]:
    """Return the runs in the order given, each with its paired gain over the first.

    The intervals of all gains hold together with 95 % confidence: each has the level 1 − 0.05 ÷ (runs − 1), after
    Bonferroni. With two runs that is 95 %.

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
    metric = at_threshold(cast(Metric, module("metrics", first.result.primary)), first.task)
    level = 1 - (1 - LEVEL) / (len(paths) - 1)
    lines = [_line(first, metric, None)]
    return [*lines, *(_line(o, metric, *_gain(metric, o, first, level)) for o in others)]


def _line(run: RunPredictions, metric: Metric, gained: Estimate | None, over_seeds: int = 0) -> Compared:
    result = run.result
    held_out, by = held_out_of(result)
    return Compared(
        str(run.path),
        result.source.name,
        result.primary,
        metric.higher_is_better,
        result.test[result.primary],
        gained,
        held_out,
        by,
        over_seeds,
    )


def ranked(lines: Sequence[Compared]) -> list[int]:
    """Return the places of the lines, the best on held-out rows first; those without such a figure last."""

    def key(i: int) -> tuple[bool, float]:
        value = lines[i].held_out
        return value is None, 0.0 if value is None else -value if lines[i].higher_is_better else value

    return sorted(range(len(lines)), key=key)


def about(lines: Sequence[Compared]) -> str:
    """Return a sentence that says whether differences are about methods or about models."""
    over = {line.over_seeds > 0 for line in lines if line.gain is not None}
    if over == {True}:
        return "They are over rows and the seeds that both runs have, so about the methods on such data."
    if over == {False}:
        return "They are about these models, not the methods."
    return "Those over seeds are about the methods on such data, the others about these models alone."


def held_out_of(result: Result) -> tuple[float | None, str]:
    """Return the primary metric of the chosen point on the rows that chose it, and which rows these are.

    The point was chosen on them, so the figure is optimistic.
    """
    if result.val:
        return result.val[result.primary].value, "val"
    points = result.frontier.points if result.frontier else []
    chosen = [p.figures[result.primary] for p in points if result.frontier and p.alpha == result.frontier.alpha]
    if chosen:
        return chosen[0], "folds"
    cross = result.cross_validation
    return (cross.fit[result.primary].value, "folds") if cross else (None, "")


def _gain(metric: Metric, run: RunPredictions, first: RunPredictions, level: float) -> tuple[Estimate, int]:
    """Return the gain over the first run, and over how many seeds of each it is; 0: it is that of the saved models."""
    for what, value in first.kind.items():
        if run.kind[what] != value:
            raise UsageError(
                f"{first.path} and {run.path} cannot be compared: their {what} differs ({words(value)} "
                f"and {words(run.kind[what])}); compare runs of one task"
            )
    pairs = list(zip(run.seeds, first.seeds, strict=False))
    try:
        if len(pairs) >= MIN_SEEDS and isinstance(measured := measure(metric, pairs), Measured):
            return measured.interval(level)[0], len(pairs)
        return gain(metric, run.rows, first.rows, level), 0
    except DataError as error:
        raise UsageError(
            f"{first.path} and {run.path} cannot be compared, for {error}, with the same data and data.split_seed"
        ) from error


def words(value: Any) -> str:
    """Return a value for a message, a long list shortened."""
    return shorten(value) if isinstance(value, list) else str(value)


def read_judgement(path: Path) -> RunPredictions:
    """Return a run's predictions. Raises UsageError for a folder that is no finished run, or a damaged one."""
    result, task = finished(path), read_task(path)
    for what, stated, saved in (("task", result.task, task.name), ("classes", result.classes, list(task.classes))):
        if stated != saved:
            raise guarded.damaged(path, "result.json", f"{what} is not that of model/labels.json")
    if result.primary not in task.metrics:
        why = f"primary is {result.primary}, which is none of {task.name}"
        raise guarded.damaged(path, "result.json", why)
    ids, scores = read_scores(path, task.outputs)
    rows = read_manifest(path / "manifest.jsonl")
    known = {row.id: row for row in rows if row.split == "test"}
    if unknown := [id_ for id_ in ids if id_ not in known]:
        why = f"{len(unknown)} of {len(ids)} rows are no test rows of manifest.jsonl"
        raise guarded.damaged(path, SCORES, why)
    try:
        cells = [tuple(known[id_].cells) for id_ in ids]
        truth = task.truth(task.encode(cells)).numpy()
    except DataError as error:
        raise guarded.damaged(path, "manifest.jsonl", error) from error
    every = tuple(known[id_].group for id_ in ids)
    groups = every if any(g is not None for g in every) else None
    first = Predictions(ids, truth, scores, groups)
    further = further_seeds(path, first, [line.seed for line in result.seeds[1:]])
    return RunPredictions(path, result, task, first, [first, *further])


def further_seeds(run: Path, first: Predictions, seeds: Sequence[int]) -> list[Predictions]:
    """Return the predictions of further seeds; none of a run that did not keep them all.

    Raises UsageError for a table that is damaged, or that has other rows than predictions.csv.
    """
    names = [f"predictions-{seed}.csv" for seed in seeds]
    if not all(guarded.is_file(run, name) for name in names):
        return []
    found = []
    for name in names:
        ids, scores = read_scores(run, first.scores.shape[1], name=name)
        place = {id_: i for i, id_ in enumerate(ids)}
        if place.keys() != set(first.ids):
            raise guarded.damaged(run, name, "its rows are not those of predictions.csv")
        found.append(replace(first, scores=scores[[place[id_] for id_ in first.ids]]))
    return found


def read_scores(
    run: Path, outputs: int, wanted: Container[str] | None = None, name: str = SCORES
) -> tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return (ids [N], scores [N, outputs]) of a run's predictions.csv, or of the table ``name``.

    With ``wanted`` it is of those ids alone.

    Raises UsageError for another table.
    """
    ids: list[str] = []
    cells = array("d")
    seen = set[str]()
    rows = table_of(run, name)
    if next(rows, [])[: len(LABELS)] != list(LABELS):
        raise guarded.damaged(run, name, f"its first columns are not {', '.join(LABELS)}")
    for number, row in enumerate(rows, 1):
        where = f"row {number}"
        if len(row) != len(LABELS) + outputs:
            why = f"{where} has {len(row)} cells, and {len(LABELS) + outputs} belong there"
            raise guarded.damaged(run, name, why)
        if row[0] in seen:
            raise guarded.damaged(run, name, "an id stands in it twice")
        seen.add(row[0])
        if wanted is not None and row[0] not in wanted:
            continue
        try:
            numbers = [float(cell) for cell in row[len(LABELS) :]]
        except ValueError as error:
            raise guarded.damaged(run, name, f"{where}: {error}") from error
        if not all(map(math.isfinite, numbers)):
            raise guarded.damaged(run, name, f"{where} has a score that is not finite")
        ids.append(row[0])
        cells.extend(numbers)
    if not seen:
        raise guarded.damaged(run, name, "it has no rows")
    return tuple(ids), np.frombuffer(cells).reshape(len(ids), outputs)


def table_of(run: Path, name: str) -> Iterator[list[str]]:
    """Yield the rows of a table of predictions that hold something. Raises UsageError where there is no table."""
    with guarded.opened(run, name) as file:
        if file is None:
            raise UsageError(f"{guarded.shown(run, name)} is missing; is this a run folder?")
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            yield from (row for row in csv.reader(text, strict=True) if row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise guarded.damaged(run, name, error) from error
