"""What a person sees while it runs. On a terminal a bar with the time left, and below it the mean of each
loss term over the epoch so far, the best epoch so far and the learning rates by block; elsewhere one plain
line an epoch, which the run itself says.

Any other work that goes through many rows is a ``stage``: after ten seconds it says how fast it is and how
long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

FIRST_LINE_S = 10  # seconds that a stage may take without a line

LINES_APART_S = 60  # seconds between two lines of a stage, at most


def no_progress(line: str) -> None:
    """Say nothing."""


_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=no_progress)


@contextmanager
def reporting(say: Callable[[str], None]) -> Iterator[None]:
    """Give the lines of every stage inside the block to ``say``. Elsewhere stages are silent."""
    before = _say.set(say)
    try:
        yield
    finally:
        _say.reset(before)


class Stage:
    """Work on many things, of which a line tells after FIRST_LINE_S how far it is.

    A stage that takes less says nothing. Without ``total`` there is no forecast.
    """

    def __init__(self, what: str, total: int | None = None, things: str = "rows") -> None:
        self.what, self.total, self.things = what, total, things
        self.done = 0
        self.began = time.monotonic()
        self.next_line_s: float = FIRST_LINE_S
        self.say = _say.get()  # here, since threads have no context

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more things as done; 0 says that the next one is under way."""
        self.done += n
        seconds = time.monotonic() - self.began
        finished = self.done == self.total and self.next_line_s > FIRST_LINE_S
        if (n and finished) or seconds >= self.next_line_s:
            self.next_line_s = seconds + min(seconds, LINES_APART_S)
            self.say(self.line(seconds))

    def over(self, items: Iterable[T], size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
        """Yield each item, and count it, or its ``size``, once the next one is asked for."""
        for item in items:
            yield item
            self.advance(size(item))

    def line(self, seconds: float) -> str:
        """Return what is done, the rate, and the time to go."""
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
    """Begin a stage: ``stage("hashing rows", len(rows)).over(rows)``, or ``advance(n)`` as it goes."""
    return Stage(what, total, things)


def duration(seconds: float) -> str:
    """Return seconds in words: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
