"""Worker processes for sweeps over architectures. A worker that dies or takes too long is replaced.

A sweep gives names; its worker answers each with one JSON line. The parent adds the lines to a file, prints
one line a name and a summary at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

START_TIMEOUT_S = 120  # for a worker's imports on a busy machine
STAGES = ("load", "fit", "save", "predict", "export")


@dataclass
class Outcome:
    """Result for one family: the last stage that it passed, or the reason why it stopped."""

    family: str
    name: str
    passed: list[str] = field(default_factory=list)
    refused: str = ""  # message of a regraft error
    failed: str = ""  # message of any other error
    skipped: str = ""
    seconds: float = 0.0
    more: dict[str, object] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Return whether it passed from load to predict."""
        return "predict" in self.passed

    def line(self) -> str:
        state = "ok" if self.whole else "skipped" if self.skipped else "refused" if self.refused else "FAILED"
        why = self.failed or self.refused or self.skipped
        return f"{state:8}{self.family:24}{self.name:36}{self.seconds:6.1f} s  {why}"


@contextlib.contextmanager
def recorded(outcome: Outcome, folder: str) -> Iterator[None]:
    """Record in the outcome what is raised inside: a refusal of regraft's own, or any other failure."""
    from regraft.errors import RegraftError

    try:
        yield
    except RegraftError as error:
        outcome.refused = " ".join(str(error).split()).replace(folder, "FOLDER")
    except Exception as error:
        outcome.failed = " ".join(f"{type(error).__name__}: {error}".split())[:500]


def work(attempt: Callable[[str, str], Outcome]) -> None:
    """Answer (family, name) lines of stdin with outcomes on stdout; what libraries print goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        family, name = json.loads(line)
        began = time.process_time()
        outcome = attempt(family, name)
        outcome.seconds = round(time.process_time() - began, 1)
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


def sweep(command: Sequence[str], todo: Sequence[tuple[str, str]], limit_s: float, lines: IO[str]) -> Iterator[Outcome]:
    """Yield one outcome a family, from workers started as ``command``. Each family has ``limit_s`` seconds."""
    worker: subprocess.Popen[str] | None = None
    for family, name in todo:
        fresh = worker is None
        if worker is None:
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        answer = ask(worker, family, name, limit_s + START_TIMEOUT_S * fresh)
        if answer.startswith("{"):
            outcome = Outcome(**json.loads(answer))
        else:
            worker.kill()
            end(worker)
            worker, outcome = None, Outcome(family, name, failed=answer)
        lines.write(json.dumps(asdict(outcome)) + "\n")
        lines.flush()
        yield outcome
    if worker is not None:
        end(worker)


def end(worker: subprocess.Popen[str]) -> None:
    """Close the worker's pipes, which ends one that is waiting, and wait for it."""
    assert worker.stdin is not None and worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.wait()
    worker.stdout.close()


def ask(worker: subprocess.Popen[str], family: str, name: str, limit_s: float) -> str:
    """Return the worker's line about a family, or why there is none."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(json.dumps([family, name]) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return f"its process ended ({worker.wait()})"
    with selectors.DefaultSelector() as waits:
        waits.register(worker.stdout, selectors.EVENT_READ)
        if not waits.select(limit_s):
            return f"took longer than {limit_s:.0f} s"
    return worker.stdout.readline().strip() or f"its process ended ({worker.wait()})"


def add_part(parser: argparse.ArgumentParser) -> None:
    """Add ``--part I/K``, for K processes that share a sweep."""
    parser.add_argument("--part", default="1/1", metavar="I/K", help="the I-th of K parts, from 1")


def part(todo: Sequence[T], which: str) -> list[T]:
    """Return each K-th item from the I-th on, where ``which`` is "I/K"."""
    i, k = (int(number) for number in which.split("/"))
    if not 1 <= i <= k:
        raise SystemExit(f"--part {which}: I/K with I from 1 to K is needed")
    return list(todo[i - 1 :: k])


def report(outcomes: Sequence[Outcome]) -> str:
    """Return the summary: how many families pass each stage, and why the others are out."""
    passed = Counter(stage for o in outcomes for stage in o.passed)
    counts = ", ".join(f"{stage} {passed[stage]}" for stage in STAGES if passed[stage])
    out = [o for o in outcomes if not o.whole]
    return "\n".join(
        [
            f"{len(outcomes)} families: {sum(o.whole for o in outcomes)} pass from load to predict ({counts})",
            f"skipped {sum(bool(o.skipped) for o in out)}, refused {sum(bool(o.refused) for o in out)}, "
            f"failed {sum(bool(o.failed) for o in outcomes)}",
            *(o.line() for o in outcomes if not o.whole or o.failed),
        ]
    )


def run(
    script: Path, todo: Sequence[tuple[str, str]], arguments: Sequence[str], limit_s: float, out: Path
) -> list[Outcome]:
    """Sweep with workers of ``script``, print a line a family and the summary, and return the outcomes."""
    outcomes = []
    with out.open("w", encoding="utf-8") as lines:
        command = [sys.executable, str(script), "--worker", *arguments]
        for outcome in sweep(command, todo, limit_s, lines):
            print(outcome.line(), flush=True)
            outcomes.append(outcome)
    print(report(outcomes), flush=True)
    return outcomes
