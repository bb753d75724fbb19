"""Folders of the user's own: where caches lie unless the plan says otherwise."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def cache_root() -> Path:
    """Return REGRAFT_CACHE, else regraft's folder in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REGRAFT_CACHE") or Path(home) / "regraft")


def pictures_root() -> Path:
    """Return the folder for pictures that are unpacked from tables: where that is another user's, who may
    change what lies in it, this user has one beside it."""
    shared = cache_root() / "pictures"
    own = getattr(os, "geteuid", lambda: None)()
    with suppress(OSError):
        if own is not None and shared.lstat().st_uid != own:
            return shared.with_name(f"pictures-uid-{own}")
    return shared


def unpacked_pictures() -> list[Path]:
    """Return the files of pictures that were unpacked from tables, and nothing that is not ours."""
    found = pictures_root().glob("[0-9a-f][0-9a-f]/*")
    return [p for p in found if re.match(r"[0-9a-f]{64}\.|\.part-", p.name)]
