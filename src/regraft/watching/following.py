"""What a run folder says now: its state, its curves, the best so far, the time left, the end of its log.

Read anew at each look from files that another process writes: nothing is locked, nothing is asked of
that process, and no torch is imported.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import zlib
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import printable
from ..io import guarded
from ..io.command_lines import command
from ..io.locks import Holder, find_holder, read_holder
from ..runs import records
from ..runs.folder import LOCK
from ..runs.summary import lines as summary_lines
from .resources import ProcessMonitor, launcher

LOG_BYTES, LOG_LINES = 256_000, 200

EPOCHS = 10  # that the time of one is averaged over

EPOCH_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) seed (\d{1,20})   epoch (\d{1,9})/(\d{1,9})\b", re.ASCII)

RESUMED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .* is resumed; done before: ")

# finished, running, failed, interrupted: as result.json and the lock say
# killed: the lock's process is gone and left no result     left: neither lock nor result
# absent: there is no folder      empty: nothing in it yet      broken: result.json does not read
ENDED = ("finished", "failed", "interrupted", "killed", "left", "broken")


def state_of(run: Path) -> tuple[str, str, Holder | None, dict[str, Any]]:
    """(state, in words, who writes it, result.json or {})."""
    if not run.is_dir():
        return "absent", "There is no such folder (yet).", None, {}
    lock = run / LOCK
    who, alive = read_holder(lock), find_holder(lock)
    try:
        result = records.read(run, "result.json", records.Ended) or {}
    except guarded.NotReadError as error:
        if alive is None:
            return "broken", f"{error}.", None, {}
        result = {}
    status = result.get("status")
    if status == "finished":
        return "finished", "Finished.", alive, result
    if alive is not None:
        return "running", f"Running: {alive}.", alive, {}  # a result is from before it was resumed
    if status in ("failed", "interrupted"):
        why = printable(result.get("error") or "no reason was kept")
        return status, f"{status.capitalize()}: {why}", None, result
    if who is not None:
        text = f"Killed: {who} is gone and left no result."
        again = command("fit", "--resume", run)
        return "killed", f"{text} Go on with: {again}", None, {}
    if not any(run.iterdir()):
        return "empty", "The folder is empty (yet).", None, {}
    return "left", "Left unfinished: nobody writes it, and there is no result.", None, {}


def look(run: Path, meter: ProcessMonitor, *, offset: int = 0, crc: int = 0) -> dict[str, Any]:
    """All that the page shows, as plain values.

    ``offset`` and ``crc`` say how much of history.jsonl the page has, and that it is that: lines that
    follow on it are sent alone, and all of them where what it has is no longer how the file begins.
    """
    try:
        return _look(run, meter, offset, crc)
    except OSError as error:  # it went in the middle of the look
        return {"name": name_of(run), "state": "absent", "words": f"It cannot be read: {error}."}


def _look(run: Path, meter: ProcessMonitor, offset: int, crc: int) -> dict[str, Any]:
    state, words, who, result = state_of(run)
    found: dict[str, Any] = {"name": name_of(run), "path": str(run), "state": state, "words": words}
    if state in ("absent", "empty"):
        return found
    notes = list[str]()
    log = log_of(run, notes)
    lines, history = history_of(run, notes, offset, crc)
    plan = plan_of(run, notes)
    found |= {
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
        found["now"] = printable(log[-1][20:]) if log else "It has just begun."
        found["left"] = time_left(log, plan, now=time.time())
        found["use"] = use_of(run, who, meter)
    if state == "finished":
        found["result"] = result_in_words(run, result)
    return found


def name_of(run: Path) -> str:
    return printable(run.resolve().name)


def log_of(run: Path, notes: list[str]) -> list[str]:
    """The last lines of the log."""
    try:
        data = guarded.read(run, "log.txt", last=LOG_BYTES) or b""
    except guarded.NotReadError as error:
        notes.append(f"{error}.")
        return []
    return data.decode(errors="backslashreplace").splitlines()


def read_lines(data: bytes) -> tuple[list[dict[str, Any]], int, int]:
    """(records, bytes they take, lines that are damaged) of history.jsonl. A last line without its end
    is still being written: it is left for the next time."""
    whole = data[: data.rfind(b"\n") + 1]
    found, damaged = list[dict[str, Any]](), 0
    for line in whole.splitlines():
        try:
            record = guarded.parse_json(line)
        except ValueError:
            record = None
        if records.problem(records.HistoryLine, record) is None:
            found.append(record)
        else:
            damaged += 1
    return found, len(whole), damaged


def history_of(run: Path, notes: list[str], offset: int, crc: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(every line, what the page is sent of them)."""
    try:
        data = guarded.read(run, "history.jsonl") or b""
    except guarded.NotReadError as error:
        notes.append(f"{error}.")
        data = b""
    lines, size, damaged = read_lines(data)
    if damaged:
        notes.append(f"{damaged} lines of history.jsonl are damaged and left out.")
    known = 0 < offset <= size and zlib.crc32(data[:offset]) == crc
    new = read_lines(data[offset:size])[0] if known else lines
    return lines, {"anew": not known, "lines": new, "offset": size, "crc": zlib.crc32(data[:size])}


def best(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best epoch so far of each seed; without val that is not known before the end."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["best"] and line["val"]:
            found[line["seed"]] = {k: line[k] for k in ("seed", "epoch", "val")}
    return list(found.values())


def primary(lines: list[dict[str, Any]], result: dict[str, Any]) -> str | None:
    if result:
        return str(result["primary"]) if "primary" in result else None
    names = [k for line in lines for k in line["val"]]
    return next((k for k in names if k != "loss"), None)


def plan_of(run: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return guarded.read_toml(run, "plan.toml") or {}
    except guarded.NotReadError as error:
        notes.append(f"{error}.")
        return {}


def of_plan(plan: dict[str, Any], section: str, key: str) -> Any:
    table = plan.get(section)
    return table.get(key) if isinstance(table, dict) else None


def shown(plan: dict[str, Any]) -> dict[str, str]:
    """What the head of the page says of a plan."""
    wanted = {
        "source": ("source", "ref"),
        "data": ("data", "path"),
        "epochs": ("fit", "epochs"),
        "seeds": ("run", "seeds"),
    }
    found = {name: of_plan(plan, *key) for name, key in wanted.items()}
    return {name: printable(str(value)) for name, value in found.items() if value is not None}


def time_left(log: list[str], plan: dict[str, Any], *, now: float) -> dict[str, Any]:
    """``{"seconds", "words"}`` until the last epoch of the last seed, from the times in the log; or
    words alone where that cannot be known. An epoch's time is the mean of the last ones since the run
    was begun or resumed; the time between two seeds is no epoch's."""
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
    took = [seconds for seconds in took if seconds >= 0][-EPOCHS:]  # a clock may be put back
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
    """What the job's processes use; words alone where that is not known."""
    if not who.here():
        apart = who.host != socket.gethostname()
        where = who.host if apart else "this machine, in another container"
        return {"words": f"not known here: it runs on {where}"}
    try:
        environment = records.read(run, "environment.json", records.Environment) or {}
    except guarded.NotReadError:
        environment = {}
    several = environment.get("processes", 1) > 1
    use = meter.look(launcher(who.pid) if several else who.pid)
    if use is None:
        return {"words": "not known: the process has just gone"}
    return asdict(use) | {"of_cores": os.cpu_count()}


def result_in_words(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    lines = [list(pair) for pair in summary_lines(run, result)]
    return {"verdict": result["verdict"]["words"], "lines": lines}
