"""Digests of files."""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path


def file_digest(file: Path | BufferedReader) -> str:
    """Return the sha256 of a file, by its path or opened, as 64 hex digits. Raises OSError."""
    if not isinstance(file, Path):
        return hashlib.file_digest(file, "sha256").hexdigest()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
