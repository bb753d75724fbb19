"""The log of a run: ``LOGGER.info(…)`` gives a line to the writers of the blocks around the call.

The command line prints the lines to standard error; a run folder keeps them in log.txt. Both work however a program
has configured ``logging``. The lines also go to ``logging.getLogger("regraft")``, which a program configures as any
other; without that it is silent. PROGRESS has the lines of long stages, which log.txt leaves out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Writer:
    """A function that takes lines."""

    write: Callable[[str], None]
    progress: bool  # whether it also takes the lines of PROGRESS


# a context, because two threads may each have a run of their own
WRITERS: ContextVar[tuple[Writer, ...]] = ContextVar("writers", default=())

SILENT: ContextVar[bool] = ContextVar("silent", default=False)


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that also gives each message of INFO and above to the writers of this thread's blocks."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a message. An error of a writer ends the run, as an error of any other part does."""
        if SILENT.get():
            return
        if level >= logging.INFO:
            text = str(msg) % args if args else str(msg)
            for writer in WRITERS.get():
                if writer.progress or self is not PROGRESS:
                    writer.write(text)
        super().log(level, msg, *args, **{"stacklevel": 2} | kwargs)  # 2: a record names the caller of this method


LOGGER = RunLogger(logging.getLogger("regraft"), {})
LOGGER.logger.addHandler(logging.NullHandler())

PROGRESS = RunLogger(logging.getLogger("regraft.progress"), {})


@contextmanager
def lines_to(write: Callable[[str], None], *, progress: bool = True) -> Iterator[None]:
    """Give each message of INFO and above inside the block to ``write``, beside the writers of outer blocks."""
    before = WRITERS.set((*WRITERS.get(), Writer(write, progress)))
    try:
        yield
    finally:
        WRITERS.reset(before)


@contextmanager
def silence() -> Iterator[None]:
    """Drop every message inside the block: ranks above 0 do what rank 0 reports."""
    before = SILENT.set(True)
    try:
        yield
    finally:
        SILENT.reset(before)
