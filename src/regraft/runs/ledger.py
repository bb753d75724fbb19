"""The ledger of test sets: the number of times that each was opened for evaluation."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ..io import locks
from ..io.places import state_root


def ledger_path() -> Path:
    """Return the ledger's place, in the user's state folder."""
    return state_root() / "test-ledger.jsonl"


def open_test(digest: str, run: str) -> int:
    """Add an opening of a test set, and return how often the set was opened, this time included.

    The ledger has one appended line for each opening, so that concurrent runs lose none. If it cannot be written, the
    run goes on: the count is 0, and the summary reports it.
    """
    path = ledger_path()
    line = json.dumps({"test": digest, "run": run, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = locks.open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(handle, "r+b") as file:
            file.write((line + "\n").encode())
            file.seek(0)
            entries = file.read().split(b"\n")  # other programs may have written anything
    except OSError:
        return 0
    return sum(1 for entry in entries if f'"{digest}"'.encode() in entry)
