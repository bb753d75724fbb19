"""SIGINT and SIGTERM: the first one finishes the step and saves, the second stops at once.

Beside the training loop there is nothing to save that is not saved, so there the first one stops at
once too.
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
    """What signals have asked for."""

    def __init__(self) -> None:
        self.asked = 0  # the signal that came; 0: none
        self.patient = False  # whether somebody will look at ``asked`` soon
        self.launched = "WORLD_SIZE" in os.environ  # one of several processes

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and self.launched and signum == signal.SIGTERM:
            return  # a launcher sends it to all when one of them, or it itself, was signalled
        if self.asked or not self.patient:
            raise Interrupted(signum)
        self.asked = signum
        text = "\nstopping: this step is finished and saved first (once more stops at once)\n"
        os.write(2, text.encode())  # print could be in the middle of a line of its own


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Signals are asked for here inside; in a thread that cannot have them, nothing changes."""
    found = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before: dict[int, Any] = {s: signal.signal(s, found.on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
