"""What a person sees while it runs: a bar with ETA on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arms import Say, Track
    from .batches import Batches


@contextmanager
def bars(*, on: bool) -> Iterator[tuple[Say, Track | None]]:
    """(say a line, wrap training batches in a bar); both silent where ``on`` is false."""
    if not on:
        yield (lambda line: None), None
        return
    if not sys.stderr.isatty():
        yield (lambda line: print(line, file=sys.stderr, flush=True)), None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:

        def track(rows: int, label: str) -> Any:
            bar = progress.add_task(label, total=rows)
            return lambda batches: Tracked(batches, progress, bar)

        yield (lambda line: console.print(line, markup=False, highlight=False)), track


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
