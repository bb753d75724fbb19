"""The link from a rank to the launcher that started it: where ranks meet, and where errors go."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

FOLDER, PIPE = "REGRAFT_RANKS", "REGRAFT_LAUNCHER"  # environment: the folder where ranks meet; a pipe's end

STORE = "store"

ORPHANED_S = 60.0  # that a rank has to save after its launcher has ended


# ---------------------------------------------------------------- in a rank


def launched() -> bool:
    """Return whether this process is a rank that ``launch`` started."""
    return FOLDER in os.environ


def store_file() -> str:
    """Return the file through which ranks meet."""
    return str(Path(os.environ[FOLDER]) / STORE)


def error_file(folder: Path, rank: int) -> Path:
    """Return the file in which a rank leaves its error."""
    return folder / f"error-{rank}"


def report(what: str, why: str) -> None:
    """Report this rank's error to the launcher: the text to print, and the error alone."""
    with suppress(OSError):
        file = error_file(Path(os.environ[FOLDER]), int(os.environ["RANK"]))
        file.write_text(json.dumps([what, why]), encoding="utf-8")


def end_with_launcher() -> None:
    """Start a thread that ends this rank as SIGTERM does, once the launcher has ended."""
    pipe = os.environ.pop(PIPE, "")  # else child processes would inherit it

    def wait() -> None:
        with suppress(OSError):
            os.read(int(pipe), 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHANED_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if pipe:
        threading.Thread(target=wait, daemon=True).start()
