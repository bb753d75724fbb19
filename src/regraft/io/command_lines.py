"""Command lines of regraft: for a person to paste into a shell, and for processes that it starts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command(*words: str | Path) -> str:
    """Return ``regraft WORDS``, each word quoted where a shell needs that."""
    return shlex.join(["regraft", *map(str, words)])


def python() -> list[str]:
    """Return the command of an interpreter that looks for modules where this one does.

    ``-m`` alone would add the working folder, so a stranger's torch.py there would be imported.
    """
    has_working_folder = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable] if has_working_folder else [sys.executable, "-P"]
