"""Commands of regraft in a message, for a person to paste into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def command(*words: str | Path) -> str:
    """Return ``regraft WORDS``, each quoted where a shell would see more in it than a name."""
    return shlex.join(["regraft", *map(str, words)])
