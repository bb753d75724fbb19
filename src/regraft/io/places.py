"""Folders of this user: caches and the ledger, where neither the plan nor a variable names another."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """Return REGRAFT_CACHE, else the system's folder for caches, as ~/.cache/regraft on Linux."""
    return Path(os.environ.get("REGRAFT_CACHE") or platformdirs.user_cache_path("regraft", appauthor=False))


def state_root() -> Path:
    """Return REGRAFT_STATE, else the system's folder for state, as ~/.local/state/regraft on Linux."""
    return Path(os.environ.get("REGRAFT_STATE") or platformdirs.user_state_path("regraft", appauthor=False))


def pictures_root() -> Path:
    """Return the folder for pictures that are unpacked from tables.

    Another user, to whom that folder belongs, could change the pictures. Then this user has one beside it.
    """
    shared = cache_root() / "pictures"
    own = getattr(os, "geteuid", lambda: None)()
    with suppress(OSError):
        if own is not None and shared.lstat().st_uid != own:
            return shared.with_name(f"pictures-uid-{own}")
    return shared


def unpacked_pictures() -> list[Path]:
    """Return the files that regraft unpacked from tables."""
    files = pictures_root().glob("[0-9a-f][0-9a-f]/*")
    return [p for p in files if re.match(r"[0-9a-f]{64}\.|\.part-", p.name)]
