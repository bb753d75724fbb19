"""What a person sees while it runs. On a terminal a bar with the time left, and below it the mean of each
loss term over the epoch so far, the best epoch so far and the learning rates by block; elsewhere one plain
line an epoch, which the run itself says.

Any other work that goes through many rows is a ``stage``: after ten seconds it says how fast it is and how
long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import printable
from .streams import complain, shown

if TYPE_CHECKING:
    from .arms import Say, Track
    from .batches import Batches
    from .state import Progress as At

T = TypeVar("T")
FIRST_LINE_S = 10  # seconds that a stage may take without a line
LINES_APART_S = 60  # seconds between two lines of a stage, at most


def silent(line: str) -> None:
    """Say nothing."""


_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=silent)


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
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


@contextmanager
def bars(*, on: bool) -> Iterator[tuple[Say, Track | None]]:
    """(say a line, wrap training batches in a bar); both silent where ``on`` is false. Stages speak too."""
    with _shown(on=on) as (say, track), telling(say):
        yield say, track


@contextmanager
def _shown(*, on: bool) -> Iterator[tuple[Say, Track | None]]:
    if not on:
        yield (lambda line: None), None
        return
    if not sys.stderr.isatty():
        yield complain, None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Shown(Progress):
        """The bars, and a few lines below them."""

        lines: tuple[str, ...] = ()

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            for line in self.lines:
                yield Text(line, style="dim")

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Shown(*columns, console=console, transient=True) as progress:

        def show(lines: tuple[str, ...]) -> None:
            progress.lines = lines

        yield (
            (lambda line: console.print(shown(line), markup=False, highlight=False)),
            Bars(progress, show),
        )


class Bars:
    """A bar a fit, and what the fit says of itself after each step."""

    def __init__(self, progress: Any, show: Callable[[tuple[str, ...]], None]) -> None:
        self.progress, self.show = progress, show
        self.terms = ""

    def __call__(self, rows: int, label: str) -> Callable[[Batches], Any]:
        bar = self.progress.add_task(label, total=rows)
        self.terms = ""
        return lambda batches: Tracked(batches, self.progress, bar)

    def step(self, label: str, at: At, steps: int) -> None:
        """Told after each step where a fit stands: ``steps`` of the epoch are in its sums."""
        if steps:
            means = figures({name: total / steps for name, total in at.sums.items()})
            self.terms = f"{label}, epoch {at.epoch}, step {at.step}   {means}"
        self.show(tuple(line for line in (self.terms, best(at), rates(at.rates)) if line))


def figures(values: Mapping[str, float]) -> str:
    return "   ".join(f"{printable(name)} {value:.4g}" for name, value in values.items())


def best(at: At) -> str:
    """The best epoch so far; "" without val, where the last one stands."""
    if not at.best:
        return ""
    which = f"epoch {at.best_epoch}" if at.best_epoch else "the starting point"
    return f"best so far on val: {which}   {figures(at.best)}"


def rates(by_block: Mapping[str, float]) -> str:
    """Neighbouring blocks with one rate are named together."""
    found = []
    for text, group in groupby(by_block.items(), key=lambda item: f"{item[1]:.2g}"):
        names = [printable(name) for name, _ in group]
        found.append(f"{names[0]}{f' to {names[-1]}' if len(names) > 1 else ''} {text}")
    return f"learning rates: {', '.join(found)}" if found else ""


class Tracked:
    """Batches whose every step moves a bar."""

    def __init__(self, batches: Batches, progress: Any, bar: Any) -> None:
        self.batches, self.progress, self.bar = batches, progress, bar
        self.batch_size = batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, n: int, skip: int = 0) -> Iterator[Any]:
        for batch in self.batches.epoch(n, skip):
            yield batch
            self.progress.advance(self.bar, len(batch[0]) * self.batches.share[1])
