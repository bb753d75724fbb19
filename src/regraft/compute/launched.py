"""What a rank knows of the launcher that started it: where ranks meet, and whom to tell of an error."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

FOLDER, PIPE = "REGRAFT_RANKS", "REGRAFT_LAUNCHER"  # to a rank: where ranks meet; a pipe's end

STORE = "store"

ORPHANED_S = 60.0  # for a rank to save whose launcher is gone


# ---------------------------------------------------------------- in a rank


def launched() -> bool:
    """Return whether this process is a rank that ``launch`` started."""
    return FOLDER in os.environ


def store_file() -> str:
    return str(Path(os.environ[FOLDER]) / STORE)


def error_file(folder: Path, rank: int) -> Path:
    return folder / f"error-{rank}"


def report(what: str, why: str) -> None:
    """Tell the launcher why this rank fails: what to print, and the error alone."""
    with suppress(OSError):
        file = error_file(Path(os.environ[FOLDER]), int(os.environ["RANK"]))
        file.write_text(json.dumps([what, why]), encoding="utf-8")


def end_with_launcher() -> None:
    """Save and end as at SIGTERM when the launcher is gone; from another thread, so returns at once."""
    pipe = os.environ.pop(PIPE, "")  # not for processes of this one

    def wait() -> None:
        with suppress(OSError):
            os.read(int(pipe), 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHANED_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if pipe:
        threading.Thread(target=wait, daemon=True).start()
