"""The leaderboard of a search: its trials, the best first, for the terminal, for --json and as a table.

The best of many scores on the same rows is optimistic, because chance helped to make it the best; the text says so.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import TrialState

from ...errors import StudyError
from ...io.command_lines import command
from ...io.csv_cells import escaped
from ...pipeline.trial import judged_by
from .slots import Slot

if TYPE_CHECKING:
    import optuna

    from ...pipeline.target_data import TargetData
    from ...plan.ranges import Value


@dataclass(frozen=True)
class Line:
    """A trial of the leaderboard."""

    trial: int
    state: Literal["complete", "pruned", "failed"]
    score: float | None  # the primary metric; of a pruned trial the last that it reported
    loss: float | None
    seconds: float
    settings: Mapping[str, Value]  # the drawn values, by dotted key
    reason: str = ""  # why it failed


@dataclass(frozen=True)
class Leaderboard:
    """The trials of a study, the best first."""

    study: str
    database: str  # its address without a password
    primary: str
    higher_is_better: bool
    judged_by: str  # "val", or "5-fold cross-validation"
    rows: int  # that judged
    lines: tuple[Line, ...]
    optimism: str  # how to read the best score
    plan: str  # file with the winner's plan
    run: str | None = None  # folder of the winner's run

    @property
    def differing(self) -> list[str]:
        """Return the keys whose values differ between the trials."""
        keys = dict.fromkeys(k for line in self.lines for k in line.settings)
        return [k for k in keys if len({line.settings.get(k) for line in self.lines}) > 1]


def leaderboard(data: TargetData, study: optuna.Study, database: str, slots: Sequence[Slot], out: Path) -> Leaderboard:
    """Return the trials, the best first. Raises StudyError if none has a score."""
    metric, by = data.metric, judged_by(data)
    lines = sorted(map(line_of, slots), key=lambda line: place(line, higher=metric.higher_is_better))
    if lines[0].state != "complete":
        why = "; ".join(f"trial {line.trial}: {line.reason or line.state}" for line in lines[:3])
        raise StudyError(f"none of {len(lines)} trials has a score ({why}): change the ranges, and give another --name")
    return Leaderboard(
        study.study_name,
        database,
        data.task.primary,
        metric.higher_is_better,
        *by,
        tuple(lines),
        optimism(lines, data.task.primary, *by, out),
        str(out / "best.toml"),
    )


def line_of(slot: Slot) -> Line:
    """Return a slot's line."""
    trial = slot.ended
    if trial is None:
        lost = f"its worker was lost {slot.losses} times"
        return Line(slot.number, "failed", None, None, 0.0, slot.attempts[-1].params, lost)
    states: dict[TrialState, Literal["complete", "pruned", "failed"]]
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    reason = trial.user_attrs.get("reason", "")
    loss = trial.user_attrs.get("loss")
    return Line(slot.number, states[trial.state], trial.value, loss, seconds, trial.params, reason)


def place(line: Line, *, higher: bool) -> tuple[int, float, float, int]:
    """Return what lines are sorted by: the score, of equal scores the lower loss, then the earlier trial."""
    state = ("complete", "pruned", "failed").index(line.state)
    score = math.inf if line.score is None else -line.score if higher else line.score
    return state, score, math.inf if line.loss is None else line.loss, line.trial


def optimism(lines: Sequence[Line], primary: str, by: str, rows: int, out: Path) -> str:
    """Return in words why the best score is too good, and what gives an honest one."""
    scores = [line.score for line in lines if line.state == "complete" and line.score is not None]
    where = f"{rows} val rows" if by == "val" else f"{rows} rows, by {by}"
    compared = sum(line.state != "failed" for line in lines)
    fit = command("fit", out / "best.toml")
    if compared == 1:
        return f"{primary} {scores[0]:.4f} on {where}. Test was not opened: `{fit}` judges the plan on it."
    return (
        f"{primary} {scores[0]:.4f} is the best of {compared} trials on the same {where}, so it is optimistic: expect "
        f"less on new rows (the median of the {len(scores)} complete trials is {statistics.median(scores):.4f}). "
        f"Test was not opened: `{fit}` judges the winner on it."
    )


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings as "fit.lr = 0.001, fit.epochs = 3"."""
    return ", ".join(f"{k} = {shown_value(v)}" for k, v in settings.items())


def shown_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_text(board: Leaderboard) -> str:
    """Return the leaderboard for the terminal, with the settings that differ."""
    keys = board.differing
    rows = [["trial", board.primary, *keys, "state", "seconds"]]
    for line in board.lines:
        score = "" if line.score is None else f"{line.score:.4f}"
        state = f"failed: {line.reason}" if line.reason else line.state
        values = [shown_value(line.settings.get(k, "")) for k in keys]
        rows.append([str(line.trial), score, *values, state, f"{line.seconds:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    same = {k: v for k, v in board.lines[0].settings.items() if k not in keys}
    more = [f"the same in every trial: {in_words(same)}"] if same else []
    end = [f"run: {board.run}"] if board.run else []
    return "\n".join([*table, *more, "", board.optimism, f"the winner's plan: {board.plan}", *end])


def record(board: Leaderboard) -> dict[str, Any]:
    """Return the leaderboard as plain values, for --json."""
    return {
        **{k: v for k, v in asdict(board).items() if k != "lines"},
        "best": asdict(board.lines[0]),
        "differing": board.differing,
        "trials": [asdict(line) for line in board.lines],
    }


def as_csv(board: Leaderboard) -> str:
    """Return the leaderboard as a table, in which no cell is a formula to a spreadsheet."""
    keys = board.differing
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(escaped, ["trial", "state", board.primary, "loss", "seconds", *keys, "reason"]))
    for line in board.lines:
        values = [line.settings.get(k) for k in keys]
        cells = [line.trial, line.state, line.score, line.loss, round(line.seconds, 3), *values, line.reason]
        writer.writerow(map(escaped, cells))
    return file.getvalue()
