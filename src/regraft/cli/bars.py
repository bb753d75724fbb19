"""Progress bars of a fit on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..io.log import lines_to
from ..io.streams import complain, shown
from .printing import unless

if TYPE_CHECKING:
    from ..data.batches import Batches
    from ..pipeline.arms import ProgressDisplay
    from ..training.records import Progress as At


@contextmanager
def bars(*, on: bool) -> Iterator[ProgressDisplay | None]:
    """Yield bars for training batches, and print the lines of a run inside the block; neither if ``on`` is false."""
    if not on or not sys.stderr.isatty():
        with lines_to(unless(not on, complain)):
            yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Shown(Progress):
        """Bars with a few lines below them."""

        lines: tuple[str, ...] = ()

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            for line in self.lines:
                yield Text(line, style="dim")

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def say(line: str) -> None:
        console.print(shown(line), markup=False, highlight=False)

    def show(lines: tuple[str, ...]) -> None:
        progress.lines = lines

    with Shown(*columns, console=console, transient=True) as progress, lines_to(say):
        yield Bars(progress, show)


class Bars:
    """A bar for each fit, with lines on its last step."""

    def __init__(self, progress: Any, show: Callable[[tuple[str, ...]], None]) -> None:
        self.progress, self.show = progress, show
        self.terms = ""

    def __call__(self, rows: int, label: str) -> Callable[[Batches], Any]:
        bar = self.progress.add_task(label, total=rows)
        self.terms = ""
        return lambda batches: Tracked(batches, self.progress, bar)

    def step(self, label: str, at: At, steps: int) -> None:
        """Show the progress after a step; its sums cover ``steps`` steps of the epoch."""
        if steps:
            means = figures({name: total / steps for name, total in at.sums.items()})
            self.terms = f"{label}, epoch {at.epoch}, step {at.step}   {means}"
        self.show(tuple(line for line in (self.terms, best(at), rates(at.rates)) if line))


def figures(values: Mapping[str, float]) -> str:
    """Return names and values as one line."""
    return "   ".join(f"{printable(name)} {value:.4g}" for name, value in values.items())


def best(at: At) -> str:
    """Return the best epoch so far; "" without val, because the fit then ends with its last epoch."""
    if not at.best:
        return ""
    which = f"epoch {at.best_epoch}" if at.best_epoch else "the starting point"
    return f"best so far on val: {which}   {figures(at.best)}"


def rates(by_block: Mapping[str, float]) -> str:
    """Return the learning rates, with one entry for neighbouring blocks that share a rate."""
    parts = []
    for text, group in groupby(by_block.items(), key=lambda item: f"{item[1]:.2g}"):
        names = [printable(name) for name, _ in group]
        parts.append(f"{names[0]}{f' to {names[-1]}' if len(names) > 1 else ''} {text}")
    return f"learning rates: {', '.join(parts)}" if parts else ""


class Tracked:
    """Batches that advance a bar at every step."""

    def __init__(self, batches: Batches, progress: Any, bar: Any) -> None:
        self.batches, self.progress, self.bar = batches, progress, bar

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, n: int, skip: int = 0) -> Iterator[Any]:
        for batch in self.batches.epoch(n, skip):
            yield batch
            self.progress.advance(self.bar, len(batch[0]) * self.batches.order.share[1])
