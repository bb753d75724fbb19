"""Folders of the user's own: where caches lie unless the plan says otherwise."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cache_root() -> Path:
    """Return REGRAFT_CACHE, else regraft's folder in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REGRAFT_CACHE") or Path(home) / "regraft")


def unpacked_pictures() -> list[Path]:
    """Return the files of pictures that were unpacked from tables, and nothing that is not ours."""
    found = (cache_root() / "pictures").glob("[0-9a-f][0-9a-f]/*")
    return [p for p in found if re.match(r"[0-9a-f]{64}\.|\.part-", p.name)]
