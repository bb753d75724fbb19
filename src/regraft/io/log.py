"""The logger of a run, ``logging.getLogger("regraft")``, and where its lines go.

The command line prints them to standard error; a run folder keeps them in log.txt. A program that imports
regraft configures the logger as any other. Without that it is silent. Progress of long stages has a child
logger, PROGRESS, which log.txt leaves out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("regraft")
LOGGER.addHandler(logging.NullHandler())

PROGRESS = logging.getLogger("regraft.progress")


class LineHandler(logging.Handler):
    """A handler that gives each message to a function."""

    def __init__(self, write: Callable[[str], None], *, progress: bool) -> None:
        super().__init__(logging.INFO)
        self.write, self.progress = write, progress

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message. An error of ``write`` ends the run, as an error of any other part does."""
        if self.progress or record.name != PROGRESS.name:
            self.write(record.getMessage())


class Parent(logging.Handler):
    """A handler that passes records to the handlers above, as they would come without the lines of a block."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        if LOGGER.parent is not None:
            LOGGER.parent.handle(record)


@contextmanager
def lines_to(write: Callable[[str], None], *, progress: bool = True) -> Iterator[None]:
    """Give each message of INFO and above inside the block to ``write``; other handlers see what they saw."""
    handler, level, propagate = LineHandler(write, progress=progress), LOGGER.level, LOGGER.propagate
    parent = Parent(LOGGER.getEffectiveLevel())
    LOGGER.addHandler(handler)
    lower = parent.level > logging.INFO
    if lower:
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        if propagate:
            LOGGER.addHandler(parent)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        if lower:
            LOGGER.removeHandler(parent)
            LOGGER.setLevel(level)
            LOGGER.propagate = propagate


@contextmanager
def silence() -> Iterator[None]:
    """Drop every message inside the block: ranks above 0 do what rank 0 reports."""
    loggers = [LOGGER, PROGRESS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
