"""SIGINT and SIGTERM: the first signal finishes the step and saves, the second stops at once.

Outside the training loop all progress is already on disk, so there the first signal stops the run at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; ``exit_code`` is 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, signum: int, text: str = "interrupted") -> None:
        super().__init__(text)
        self.signum = signum
        self.exit_code = 128 + signum


class Stopping:
    """The signal that this process received."""

    def __init__(self) -> None:
        self.asked = 0  # number of the signal; 0: none came
        self.patient = False  # True in the training loop, which reads ``asked`` after each step
        self.launched = "WORLD_SIZE" in os.environ  # one of several ranks

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal. Raises Interrupted if it must stop the process at once."""
        if self.asked and self.launched and signum == signal.SIGTERM:
            return  # a launcher passes its own signal, or one rank's, on to all ranks
        if self.asked or not self.patient:
            raise Interrupted(signum)
        self.asked = signum
        text = "\nstopping after this step, which is saved first; a second signal stops at once\n"
        os.write(2, text.encode())  # the signal may have interrupted a print


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Install signal handlers inside the block. Outside the main thread this has no effect."""
    state = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before: dict[int, Any] = {s: signal.signal(s, state.on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
