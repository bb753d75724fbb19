"""Another point of a run's frontier, without training: ``regraft frontier RUN --retain 0.98``.

The figures of the points are those that the run wrote, on val (or over folds) and on the source's select rows.
A point that becomes a run of its own is evaluated again: this opens test once more, and the ledger counts it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from ..compute.malloc import freed_memory_kept
from ..errors import DataError, SourceError, UsageError
from ..evidence.frontier import choose
from ..evidence.scoring import at_threshold
from ..io import guarded
from ..io.log import lines_to
from ..metrics import Metric
from ..plugins import module
from ..runs.estimates import Point, Retained
from ..runs.folder import RunFolder, check_new, read_json, read_task
from ..runs.result import finished
from ..runs.side_files import Environment


@dataclass(frozen=True)
class Rechosen:
    """The points of a run's frontier, and the one that a floor chooses."""

    points: list[Point]
    chosen: Point
    primary: str
    chosen_by: str  # "val" or "cross-validation"


def rechoose(run: Path, retain: float | None) -> Rechosen:
    """Return the best point of a run that keeps the floor ``retain``; without a floor the best.

    Raises UsageError for a run without a frontier of its saved model, PlanError for a floor that no point keeps.
    """
    result = finished(run)
    front = result.frontier
    if front is None:
        raise UsageError(f"{run} has no frontier: it did not start from a probe, α was given, or nothing was fitted")
    if front.seed not in (None, saved := result.seeds[0].seed):
        raise UsageError(
            f"{run} saved the model of seed {saved}, which no epoch moved from the start; the frontier it "
            f"shows is of seed {front.seed}: fit again with --seed {front.seed}"
        )
    if not front.points:
        raise guarded.damaged(run, "result.json", "frontier.points are none")
    task = read_task(run)
    if result.primary not in task.metrics:
        raise guarded.damaged(run, "result.json", f"primary is {result.primary}, which is none of {task.name}")
    metric = at_threshold(cast(Metric, module("metrics", result.primary)), task)
    chosen = choose(front.points, metric, retain)
    return Rechosen(front.points, chosen, result.primary, front.chosen_by)


@freed_memory_kept()
def write_chosen(run: Path, found: Rechosen, retain: float | None, out: Path) -> Path:
    """Write the chosen point of the first seed as a run folder of its own, and return its path.

    Raises UsageError if ``out`` exists or nothing was fitted, DataError or SourceError if the run's data or source
    have changed.
    """
    from ..evidence.linear_probe import Probe
    from ..pipeline.arms import Arm, point_loader
    from ..pipeline.evaluate import Trained
    from ..pipeline.finish import Clock, describe, finish, read_ends
    from ..pipeline.folds import CrossValidation
    from ..pipeline.prepare import prepare
    from ..plan import read as plan_read
    from ..training.records import FitResult

    check_new(out)
    result = finished(run)
    if not result.fit.fitted:
        raise UsageError(
            f"{run} is the start itself (α = 0): nothing was fitted on all of train, so no other point can be "
            f"written: fit with fit.alpha = 0.5, or another"
        )
    start, end = read_ends(run)
    tree = plan_read.read_run_plan(run).model_dump(exclude_none=True)
    tree["fit"].pop("retain", None)
    tree["fit"] |= {"alpha": "chosen"} | ({} if retain is None else {"retain": retain})
    tree["evaluate"]["controls"] = []
    tree["run"] |= {"out": str(out), "seeds": 1}
    clock = Clock()
    with clock("prepare"):
        job = prepare(plan_read.check(tree))
    if job.data.splits.digest != read_json(run, "environment.json", Environment).data_digest:
        raise DataError(f"{job.plan.data.path} has changed since {run} was made: fit it again")
    if job.source.digest != result.source.digest:
        raise SourceError(f"{job.source.name} has changed since {run} was made: fit it again")
    point_loader(job.data, job.target, start, end)(found.chosen.alpha)
    solver = result.probe
    if solver is None:
        raise guarded.damaged(run, "result.json", "probe is missing")
    losses = {float(strength): loss for strength, loss in solver.losses.items()}
    weight, bias = (start[f"head.{part}"] for part in ("weight", "bias"))
    facts = (solver.chosen_by, solver.rows, solver.of, solver.passes)
    probe = Probe(weight, bias, solver.strength, losses, *facts)
    fit = FitResult(**{f.name: getattr(result.fit, f.name) for f in fields(FitResult)})
    arm = Arm(job.target, fit, found.chosen.alpha, found.points, {} if found.chosen.alpha == 1 else end)
    by_folds = found.chosen_by == "cross-validation"
    cross = CrossValidation(found.points if by_folds else [], 0, {})
    with RunFolder(out) as folder, lines_to(folder.log, progress=False):
        describe(job, folder)
        folder.log(f"α = {found.chosen.alpha:g} of {run}, without training")
        finish(job, folder, Trained([arm], [], probe, cross, fitted=True), clock)
    return folder.path


def in_words(found: Rechosen, retain: float | None) -> str:
    """Return a table for the terminal; an arrow marks the chosen point."""
    sure = any(p.source is not None for p in found.points)
    by = found.chosen_by
    head = f"     α   {by} {found.primary}   loss"
    out = [head + ("    source   kept    at least" if sure else "")]
    wide = len(f"{by} {found.primary}")
    for p in found.points:
        mark = "→" if p is found.chosen else " "
        line = f"{mark} {p.alpha:>4.1f}   {p.figures[found.primary]:>{wide}.4f}  {p.loss:.4f}"
        out.append(line + (source_words(p.source) if p.source else ""))
    floor = "" if retain is None else f", keeping {retain:g} of the source with 95 % confidence"
    out.append(f"α = {found.chosen.alpha:g} is best by {by}{floor}; 0 is the start, 1 the fit.")
    out.append(f"The best of {len(found.points)} figures is too high as an estimate; test has another one.")
    return "\n".join(out)


def source_words(source: Retained) -> str:
    """Return the columns of a point's retention."""
    if source.ratio is None or source.low is None:
        return f"   {source.after:.4f}   not defined"
    return f"   {source.after:.4f}   {source.ratio:.4f}   {source.low:.4f}"
