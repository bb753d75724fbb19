"""A run in TensorBoard or MLflow: its curves as they grow, and at the end the evidence.

Read from run files alone, so it works for a run of another process, for one that is long done, and
never holds training up. An epoch is sent once: one that is trained again after a resume has the same
figures.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import UsageError, did_you_mean, printable
from ..io import guarded
from ..report.reading import brief
from ..runs.summary import summary
from ..trackers import EpochFigures, RunEnd
from .following import read_lines, state_of

GOING_ON = ("running", "empty")

KEPT = ("plan.toml", "environment.json", "result.json", "report.html")

KINDS = {"terms": "loss", "val": "val", "source": "source", "rates": "rate"}


def track(
    run: Path, to: str, where: str | None = None, *, every: float = 1.0, say: Callable[[str], None] = lambda line: None
) -> str:
    """Write a run to a tracker; one that is running is followed to its end, looking ``every`` so many
    seconds. → what the tracker says: where it is.

    ``where`` is the tracker's. Without it the tracker's own ``place()`` is taken, or RUN/NAME is made anew.

    Raises UsageError for a folder that is no run, a tracker that there is not, and a missing package.
    """
    if to not in plugins.names("trackers"):
        raise UsageError(f'no tracker is called "{to}"; {did_you_mean(to, plugins.names("trackers"))}')
    tracker = plugins.module("trackers", to)
    missing = [name for name in tracker.needs if find_spec(name) is None]
    if missing:
        raise UsageError(f'--to {to} needs {", ".join(missing)}, not installed here: pip install "regraft[track]"')
    state, words, _, _ = state_of(run)
    if state == "broken":
        raise UsageError(words.removesuffix("."))
    if state == "absent" or (state != "empty" and not is_run(run)):
        raise UsageError(f"{run} is no run folder: give one that regraft fit has begun")
    while state_of(run)[0] in GOING_ON and not guarded.is_file(run, "plan.toml"):
        time.sleep(every)  # a run's plan is written once it is known what is trained
    if state_of(run)[0] == "running":
        say(f"{run} is running: it is followed to its end (Ctrl-C stops following, not the run)")
    return str(
        tracker.track(
            run.resolve().name,
            params(run),
            epochs(run, every),
            lambda: end(run),
            place(run, to, tracker) if where is None else where,
        )
    )


def is_run(run: Path) -> bool:
    names = ("plan.toml", "result.json", "lock")
    return any(os.path.lexists(run / name) for name in names)


def place(run: Path, to: str, tracker: Any) -> str:
    """Return the tracker's own place, or the folder RUN/NAME after removing an older one there."""
    if hasattr(tracker, "place"):
        return str(tracker.place())
    own = run / to
    if own.is_symlink():
        raise UsageError(f"{own} is a link, and is not written over: remove it, or choose --out")
    shutil.rmtree(own, ignore_errors=True)
    return str(own)


def epochs(run: Path, every: float) -> Iterator[EpochFigures]:
    """The lines of history.jsonl, each once, until nobody writes any more."""
    sent = set[tuple[int, int]]()
    while True:
        going_on = state_of(run)[0] in GOING_ON  # first: what is written before it ends is read
        for line in lines(run):
            if (line.seed, line.epoch) not in sent:
                sent.add((line.seed, line.epoch))
                yield line
        if not going_on:
            return
        time.sleep(every)


def lines(run: Path) -> Iterator[EpochFigures]:
    found, _, _ = read_lines(guarded.read(run, "history.jsonl") or b"")
    for line in found:
        figures = {
            printable(f"{said}/{name}"): float(value)
            for kind, said in KINDS.items()
            for name, value in line.get(kind, {}).items()
            if number(value)
        }
        yield EpochFigures(line["seed"], line["epoch"], figures)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def params(run: Path) -> dict[str, str]:
    """The plan as dotted keys, folders left out of its paths."""
    tree = guarded.read_toml(run, "plan.toml") or {}

    def flat(table: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from flat(value, f"{before}{key}.")
            else:
                yield printable(f"{before}{key}"), printable(brief(str(value)))

    return dict(flat(tree, ""))


def end(run: Path) -> RunEnd:
    """What became of it. Raises UsageError for a result that is damaged."""
    state, words, _, result = state_of(run)
    files = [run / name for name in KEPT if guarded.is_file(run, name)]
    if state != "finished":
        return RunEnd(state, words, {}, {}, "", files)
    text = printable_lines(summary(run, result))
    return RunEnd(state, words, dict(metrics(result)), tags(run, result), text, files)


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))


def metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every figure of the result with its interval."""
    estimates = {f"test/{name}": e for name, e in result["test"].items()}
    estimates |= {f"gain/{name}": e for name, e in result["gain"].items()}
    estimates |= {"verdict/gain over scratch": result["verdict"]["gain"]}
    estimates |= {f"control/{name}": c[result["primary"]] for name, c in result["controls"].items()}
    kept = result["retention"] or {}
    estimates |= {f"source/{k}": kept.get(k) for k in ("before", "after", "forgetting", "agreement")}
    for name, estimate in estimates.items():
        for part, suffix in (("value", ""), ("low", " low"), ("high", " high")):
            if estimate is not None and number(estimate[part]):
                yield name + suffix, float(estimate[part])
    single = {
        "source/retention": kept.get("ratio"),
        "source/CKA": kept.get("cka"),
        "frontier/alpha": (result["frontier"] or {}).get("alpha"),
        "seconds/total": result["timing"]["total"],
    }
    yield from ((name, float(value)) for name, value in single.items() if number(value))


def tags(run: Path, result: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "verdict": result["verdict"]["words"],
        "verdict why": result["verdict"].get("why", ""),
        "task": result["task"],
        "primary metric": result["primary"],
        "source": brief(str(result["source"]["name"])),
        "source digest": result["source"].get("digest", ""),
        "test opened": result["test_opened"],
    }
    try:
        environment = guarded.read_json(run, "environment.json") or {}
    except guarded.NotReadError:
        environment = {}
    environment = environment if isinstance(environment, dict) else {}
    found |= {k: environment.get(k, "") for k in ("regraft", "data_digest", "test_digest")}
    return {name: printable(str(value)) for name, value in found.items() if value not in ("", None)}
