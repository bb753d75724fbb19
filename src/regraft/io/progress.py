"""Progress of work on many rows: a ``stage`` reports its rate and the time to go.

A stage writes its first line after FIRST_LINE_S, so short work writes none. The fit itself has a progress
bar on a terminal (cli/bars.py); elsewhere the run writes one line an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import TypeVar

from .log import PROGRESS

T = TypeVar("T")

FIRST_LINE_S = 10  # seconds before the first line of a stage

LINES_APART_S = 60  # most seconds between two lines of a stage


class Stage:
    """A piece of work on many things, which reports how far it is.

    Without ``total`` its lines have no time to go.
    """

    def __init__(self, what: str, total: int | None = None, things: str = "rows") -> None:
        self.what, self.total, self.things = what, total, things
        self.done = 0
        self.began = time.monotonic()
        self.next_line_s: float = FIRST_LINE_S
        self.context = copy_context()  # here, because a thread that advances the stage has none of its caller's writers

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more things as done, and write a line if one is due. 0 counts none."""
        self.done += n
        seconds = time.monotonic() - self.began
        finished = self.done == self.total and self.next_line_s > FIRST_LINE_S
        if (n and finished) or seconds >= self.next_line_s:
            self.next_line_s = seconds + min(seconds, LINES_APART_S)
            self.context.copy().run(PROGRESS.info, "%s", self.line(seconds))  # a copy: two threads may advance at once

    def over(self, items: Iterable[T], size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
        """Yield each item. Count it, or its ``size``, when the caller asks for the next one."""
        for item in items:
            yield item
            self.advance(size(item))

    def line(self, seconds: float) -> str:
        """Return the line: the count, the rate and the time to go."""
        if self.total is None:
            count = f"{self.done:,} {self.things}"
        else:
            count = f"{self.done:,} of {self.total:,} {self.things}"
        text = f"{self.what}: {count} in {duration(seconds)}"
        if not self.done:
            return text
        text += f", {self.done / seconds:,.3g} a second"
        if self.total is None or self.done >= self.total:
            return text
        return f"{text}, {duration((self.total - self.done) * seconds / self.done)} to go"


def stage(what: str, total: int | None = None, things: str = "rows") -> Stage:
    """Return a new stage: ``stage("hashing rows", len(rows)).over(rows)``, or call ``advance(n)``."""
    return Stage(what, total, things)


def duration(seconds: float) -> str:
    """Return seconds for people: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
