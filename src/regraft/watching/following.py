"""The present state of a run folder: its curves, the best epoch so far, the time left, the end of its log.

Each look reads the files again while another process writes them. It takes no lock, asks that process nothing,
and imports no torch.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ..errors import printable
from ..io import guarded
from ..io.command_lines import command
from ..io.locks import Holder, find_holder, read_holder
from ..runs import records
from ..runs.folder import LOCK
from ..runs.result import Result, Unfinished, read_ended
from ..runs.side_files import Environment, HistoryLine
from ..runs.summary import lines as summary_lines
from .resources import ProcessMonitor, launcher

LOG_BYTES, LOG_LINES = 256_000, 200  # of the end of log.txt

T = TypeVar("T")

MEAN_OF_EPOCHS = 10  # last epochs whose mean time is the time of the next

EPOCH_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) seed (\d{1,20})   epoch (\d{1,9})/(\d{1,9})\b", re.ASCII)

RESUMED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .* is resumed; done before: ")

# finished, running, failed, interrupted: from result.json and the lock
# killed: the lock's process is gone without a result     left: neither lock nor result
# absent: no folder      empty: no file in it yet      broken: result.json is damaged
ENDED = ("finished", "failed", "interrupted", "killed", "left", "broken")


def state_of(run: Path) -> tuple[str, str, Holder | None, Result | None]:
    """Return (state, that in words, the process that writes it, the result of a finished run)."""
    if not run.is_dir():
        return "absent", "There is no such folder (yet).", None, None
    lock = run / LOCK
    who, alive = read_holder(lock), find_holder(lock)
    try:
        result = read_ended(run)
    except guarded.NotReadError as error:
        if alive is None:
            return "broken", f"{error}.", None, None
        result = None
    if isinstance(result, Result):
        return "finished", "Finished.", alive, result
    if alive is not None:
        return "running", f"Running: {alive}.", alive, None  # a result is from before it was resumed
    if isinstance(result, Unfinished):
        why = printable(result.error or "no reason was kept")
        return result.status, f"{result.status.capitalize()}: {why}", None, None
    if who is not None:
        text = f"Killed: {who} is gone and left no result."
        again = command("fit", "--resume", run)
        return "killed", f"{text} Go on with: {again}", None, None
    if not any(run.iterdir()):
        return "empty", "The folder is empty (yet).", None, None
    return "left", "Left unfinished: no process writes it, and there is no result.", None, None


def look(run: Path, meter: ProcessMonitor, *, offset: int = 0, crc: int = 0) -> dict[str, Any]:
    """Return all that the page shows, as plain values.

    ``offset`` and ``crc`` are the bytes of history.jsonl that the page has, and their checksum. If the file still
    begins with them, the page is sent the lines that follow; else all lines.
    """
    try:
        return _look(run, meter, offset, crc)
    except OSError as error:  # the folder was removed during the look
        return {"name": name_of(run), "state": "absent", "words": f"It cannot be read: {error}."}
    except Exception as error:  # a fault of regraft: the page reports it and goes on
        return {"name": name_of(run), "state": "broken", "words": printable(fault(error))}


def _look(run: Path, meter: ProcessMonitor, offset: int, crc: int) -> dict[str, Any]:
    state, words, who, result = state_of(run)
    view: dict[str, Any] = {"name": name_of(run), "path": str(run), "state": state, "words": words}
    if state in ("absent", "empty"):
        return view
    notes = list[str]()
    ends = read_or_note(notes, lambda: guarded.read(run, "log.txt", last=LOG_BYTES), b"")
    log = ends.decode(errors="backslashreplace").splitlines()
    lines, history = history_of(run, notes, offset, crc)
    plan: dict[str, Any] = read_or_note(notes, lambda: guarded.read_toml(run, "plan.toml"), {})
    view |= {
        "pid": who.pid if who else None,
        "history": history,
        "best": best(lines),
        "primary": primary(lines, result),
        "plan": shown(plan),
        "log": [printable(line) for line in log[-LOG_LINES:]],
        "notes": notes,
        "disk": shutil.disk_usage(run).free,
    }
    if state == "running" and who is not None:
        view["now"] = printable(log[-1][20:]) if log else "It has just begun."
        view["left"] = time_left(log, plan, now=time.time())
        view["use"] = use_of(run, who, meter)
    if result is not None:
        lines_of_result = [list(pair) for pair in summary_lines(run, result)]
        view["result"] = {"verdict": result.verdict.words, "lines": lines_of_result}
    return view


def fault(error: Exception) -> str:
    """Return the words for a run that regraft fails on, though its files are as they should be."""
    return f"regraft itself failed on this run, which is a fault of regraft: {type(error).__name__}: {error}."


def name_of(run: Path) -> str:
    """Return the name of a run's folder."""
    return printable(run.resolve().name)


def read_or_note(notes: list[str], read: Callable[[], T | None], empty: T) -> T:
    """Return what ``read`` gives; ``empty`` for a missing file, and with a note for a damaged one."""
    try:
        return read() or empty
    except guarded.NotReadError as error:
        notes.append(f"{error}.")
        return empty


def read_lines(data: bytes) -> tuple[list[HistoryLine], int, int]:
    """Return (records, bytes of their lines, number of damaged lines) of history.jsonl.

    A last line without a line break is left for the next look, because it is still being written.
    """
    whole = data[: data.rfind(b"\n") + 1]
    lines, damaged = list[HistoryLine](), 0
    for line in whole.splitlines():
        try:
            lines.append(records.checked(HistoryLine, guarded.parse_json(line)))
        except ValueError:
            damaged += 1
    return lines, len(whole), damaged


def history_of(run: Path, notes: list[str], offset: int, crc: int) -> tuple[list[HistoryLine], dict[str, Any]]:
    """Return every line, and the part of them that the page is sent."""
    data = read_or_note(notes, lambda: guarded.read(run, "history.jsonl"), b"")
    lines, size, damaged = read_lines(data)
    if damaged:
        notes.append(f"{damaged} lines of history.jsonl are damaged and left out.")
    known = 0 < offset <= size and zlib.crc32(data[:offset]) == crc
    new = read_lines(data[offset:size])[0] if known else lines
    return lines, {
        "anew": not known,
        "lines": [line.model_dump() for line in new],
        "offset": size,
        "crc": zlib.crc32(data[:size]),
    }


def best(lines: list[HistoryLine]) -> list[dict[str, Any]]:
    """Return the best epoch so far of each seed; without val it is not known before the end."""
    epochs = {line.seed: line for line in lines if line.best and line.val}
    return [line.model_dump(include={"seed", "epoch", "val"}) for line in epochs.values()]


def primary(lines: list[HistoryLine], result: Result | None) -> str | None:
    """Return the metric that choices are made by; None if no line names one yet."""
    if result is not None:
        return result.primary
    names = [k for line in lines for k in line.val]
    return next((k for k in names if k != "loss"), None)


def of_plan(plan: dict[str, Any], section: str, key: str) -> Any:
    """Return a value of an unchecked plan; None if there is none."""
    table = plan.get(section)
    return table.get(key) if isinstance(table, dict) else None


def shown(plan: dict[str, Any]) -> dict[str, str]:
    """Return the values of a plan for the head of the page."""
    wanted = {
        "source": ("source", "ref"),
        "data": ("data", "path"),
        "epochs": ("fit", "epochs"),
        "seeds": ("run", "seeds"),
    }
    values = {name: of_plan(plan, *key) for name, key in wanted.items()}
    return {name: printable(str(value)) for name, value in values.items() if value is not None}


def time_left(log: list[str], plan: dict[str, Any], *, now: float) -> dict[str, Any]:
    """Return ``{"seconds", "words"}`` until the last epoch of the last seed; seconds are None if not known.

    An epoch's time is the mean of the last ones in the log since the run began or was resumed. The time between
    two seeds belongs to no epoch.
    """
    times: dict[tuple[int, int], float] = {}
    total = 0
    for line in log:
        if RESUMED.match(line):
            times = {}
        elif match := EPOCH_LINE.match(line):
            try:
                at = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").timestamp()
            except (ValueError, OverflowError):  # a line that a run did not write
                continue
            times.setdefault((int(match[2]), int(match[3])), at)
            total = int(match[4])
    took = [at - times[s, e - 1] for (s, e), at in times.items() if (s, e - 1) in times]
    took = [seconds for seconds in took if seconds >= 0][-MEAN_OF_EPOCHS:]  # a clock may be set back
    if not took:
        return {"seconds": None, "words": "not known before two epochs are done"}
    seed, epoch = max(times, key=lambda k: times[k])
    first, seeds = of_plan(plan, "run", "seed"), of_plan(plan, "run", "seeds")
    later = first + seeds - 1 - seed if isinstance(first, int) and isinstance(seeds, int) else 0
    epochs = total - epoch + total * max(0, later)
    after = "evaluation"
    controls = of_plan(plan, "evaluate", "controls")
    if isinstance(controls, list) and "scratch" in controls:
        after = "training from scratch and evaluation"
    if epochs <= 0:
        return {"seconds": None, "words": f"all epochs are done; what {after} takes is not known"}
    each = sum(took) / len(took)
    seconds = max(0.0, epochs * each - max(0.0, now - times[seed, epoch]))
    words = f"for {epochs} epochs of about {each:.2g} s, or fewer; then {after}"
    return {"seconds": seconds, "words": words}


def use_of(run: Path, who: Holder, meter: ProcessMonitor) -> dict[str, Any]:
    """Return what the job's processes use, or only words if that is not known."""
    if not who.here():
        apart = who.host != socket.gethostname()
        where = who.host if apart else "this machine, in another container"
        return {"words": f"not known here: it runs on {where}"}
    try:
        environment = records.read(run, "environment.json", Environment)
    except guarded.NotReadError:
        environment = None
    several = environment is not None and environment.processes > 1
    use = meter.look(launcher(who.pid) if several else who.pid)
    if use is None:
        return {"words": "not known: the process has just gone"}
    return asdict(use) | {"of_cores": os.cpu_count()}
