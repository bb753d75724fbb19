"""Commands of regraft: in a message, for a person to paste into a shell, and for processes it starts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command(*words: str | Path) -> str:
    """Return ``regraft WORDS``, each quoted where a shell would see more in it than a name."""
    return shlex.join(["regraft", *map(str, words)])


def python() -> list[str]:
    """Return the command of an interpreter that looks for modules where this one does.

    ``-m`` alone adds the working folder: a torch.py in the folder of a stranger would be imported.
    """
    looks_here = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable] if looks_here else [sys.executable, "-P"]
