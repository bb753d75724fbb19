"""A run in TensorBoard or MLflow: its curves as they grow, and at the end the evidence.

It reads run files only. It therefore works for a run of another process and for a finished run, and never delays
training. An epoch is sent once, because an epoch that is trained again after a resume has the same figures.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import UsageError, printable
from ..io import guarded
from ..io.log import LOGGER
from ..report.reading import brief
from ..runs import records
from ..runs.estimates import Estimate
from ..runs.result import Result
from ..runs.result_parts import Agreement, SourceRetention
from ..runs.side_files import Environment
from ..runs.summary import summary
from ..trackers import EpochFigures, RunEnd
from .following import read_lines, state_of

GOING_ON = ("running", "empty")

KEPT = ("plan.toml", "environment.json", "result.json", "report.html")


def track(run: Path, to: str, where: str | None = None, *, every: float = 1.0) -> str:
    """Write a run to a tracker, and return the tracker's message: where the run is.

    A running run is followed to its end, with a look every ``every`` seconds. ``where`` is the tracker's place:
    without one it is the tracker's own ``place()``, or RUN/NAME, which is replaced.

    Raises UsageError for a folder that is no run, an unknown tracker, and a missing package.
    """
    tracker = plugins.installed_module("trackers", to, "track")
    state, words, _, _ = state_of(run)
    if state == "broken":
        raise UsageError(words.removesuffix("."))
    if state == "absent" or (state != "empty" and not is_run(run)):
        raise UsageError(f"{run} is no run folder: give one that regraft fit has begun")
    while state_of(run)[0] in GOING_ON and not guarded.is_file(run, "plan.toml"):
        time.sleep(every)  # a run writes its plan after it has read data and source
    if state_of(run)[0] == "running":
        LOGGER.info("%s is running: it is followed to its end (Ctrl-C stops following, not the run)", run)
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
    """Return whether a folder holds a file of a run."""
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
    """Yield the lines of history.jsonl, each once, until no process writes the run."""
    sent = set[tuple[int, int]]()
    while True:
        going_on = state_of(run)[0] in GOING_ON  # before the look, so that the last lines are read
        for line in lines(run):
            if (line.seed, line.epoch) not in sent:
                sent.add((line.seed, line.epoch))
                yield line
        if not going_on:
            return
        time.sleep(every)


def lines(run: Path) -> Iterator[EpochFigures]:
    """Yield the epochs in history.jsonl; undefined figures are left out."""
    epochs, _, _ = read_lines(guarded.read(run, "history.jsonl") or b"")
    for line in epochs:
        kinds = {"loss": line.terms, "val": line.val, "source": line.source, "rate": line.rates}
        figures = {
            printable(f"{kind}/{name}"): value
            for kind, values in kinds.items()
            for name, value in values.items()
            if isfinite(value)
        }
        yield EpochFigures(line.seed, line.epoch, figures)


def params(run: Path) -> dict[str, str]:
    """Return the plan by dotted keys, without the folders in its paths."""
    tree = guarded.read_toml(run, "plan.toml") or {}

    def flat(table: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from flat(value, f"{before}{key}.")
            else:
                yield printable(f"{before}{key}"), printable(brief(str(value)))

    return dict(flat(tree, ""))


def end(run: Path) -> RunEnd:
    """Return how a run ended. Raises UsageError if its result is damaged."""
    state, words, _, result = state_of(run)
    files = [run / name for name in KEPT if guarded.is_file(run, name)]
    if result is None:
        return RunEnd(state, words, {}, {}, "", files)
    text = "\n".join(map(printable, summary(run, result).splitlines()))
    return RunEnd(state, words, dict(metrics(result)), tags(run, result), text, files)


def metrics(r: Result) -> Iterator[tuple[str, float]]:
    """Yield every figure of a result, and the ends of its interval; undefined ones are left out."""
    kept = r.retention
    estimates: dict[str, Estimate | None] = {f"test/{name}": e for name, e in r.test.items()}
    estimates |= {f"gain/{name}": e for name, e in r.gain.items()}
    estimates |= {"verdict/gain over scratch": r.verdict.gain}
    estimates |= {f"control/{name}": c[r.primary] for name, c in r.controls.items()}
    single = {"frontier/alpha": r.frontier.alpha if r.frontier else None, "seconds/total": r.timing.total}
    if isinstance(kept, SourceRetention):
        estimates |= {"source/before": kept.before, "source/after": kept.after, "source/forgetting": kept.forgetting}
        single |= {"source/retention": kept.ratio}
    elif isinstance(kept, Agreement):
        estimates |= {"source/agreement": kept.agreement}
    elif kept is not None:
        single |= {"source/CKA": kept.cka}
    for name, e in estimates.items():
        if e is not None:
            single |= {name: e.value, f"{name} low": e.low, f"{name} high": e.high}
    yield from ((name, float(value)) for name, value in single.items() if value is not None and isfinite(value))


def tags(run: Path, r: Result) -> dict[str, str]:
    """Return the words of a result: verdict, task, source and digests."""
    values = {
        "verdict": r.verdict.words,
        "verdict why": r.verdict.why,
        "task": r.task,
        "primary metric": r.primary,
        "source": brief(r.source.name),
        "source digest": r.source.digest,
        "test opened": str(r.test_opened),
    }
    try:
        environment = records.read(run, "environment.json", Environment)
    except guarded.NotReadError:
        environment = None
    if environment is not None:
        values |= {
            "regraft": environment.regraft,
            "data_digest": environment.data_digest,
            "test_digest": environment.test_digest,
        }
    return {name: printable(value) for name, value in values.items() if value}
