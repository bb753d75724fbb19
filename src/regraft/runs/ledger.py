"""The ledger of test sets: how often each was opened for evaluation."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ..io import locks
from ..io.places import state_root

# ---------------------------------------------------------------- the ledger of opened test sets


def ledger_path() -> Path:
    return state_root() / "test-ledger.jsonl"


def open_test(digest: str, run: str) -> int:
    """Note that a test set was opened; → how often it has been, this time included.

    The ledger is one line an opening, appended, so that runs beside each other lose none. Where it
    cannot be written the run goes on: → 0, and the summary says so.
    """
    path = ledger_path()
    line = json.dumps({"test": digest, "run": run, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = locks.open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(handle, "r+b") as file:
            file.write((line + "\n").encode())
            file.seek(0)
            entries = file.read().split(b"\n")  # others may have written anything
    except OSError:
        return 0
    return sum(1 for entry in entries if f'"{digest}"'.encode() in entry)
