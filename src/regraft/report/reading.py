"""A run folder as the report reads it."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..runfiles import finished, read_json


@dataclass(frozen=True)
class RunFiles:
    """What a finished run left behind; each file is read when it is first asked for."""

    path: Path
    result: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunFiles:
        """Raises UsageError for a folder that is no finished run."""
        return cls(path, finished(path))

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def primary(self) -> str:
        return str(self.result["primary"])

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """A line an epoch; none where a point was chosen without training."""
        path = self.path / "history.jsonl"
        return list(_lines(path)) if path.exists() else []

    @cached_property
    def manifest(self) -> dict[str, Counter[str]]:
        """split → label → rows."""
        found: dict[str, Counter[str]] = {}
        for row in _lines(self.path / "manifest.jsonl"):
            found.setdefault(row["split"], Counter())[";".join(row["cells"])] += 1
        return found

    @cached_property
    def environment(self) -> dict[str, Any]:
        return dict(read_json(self.path / "environment.json"))

    @cached_property
    def plan(self) -> str:
        """The plan's text, folders left out of its paths."""
        try:
            return brief((self.path / "plan.toml").read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{self.path / 'plan.toml'} cannot be read: {error}") from error

    @cached_property
    def findings(self) -> list[dict[str, Any]] | None:
        """What the checks found before the run, the gravest first; None of runs without them."""
        path = self.path / "check.json"
        return list(read_json(path)["findings"]) if path.is_file() else None

    @cached_property
    def gallery(self) -> list[dict[str, Any]]:
        path = self.path / "gallery" / "gallery.json"
        return list(read_json(path)) if path.is_file() else []

    @cached_property
    def suspects(self) -> dict[str, Any] | None:
        """Labels that are probably wrong; None of runs that did not look for them."""
        path = self.path / "gallery" / "suspects.json"
        return dict(read_json(path)) if path.is_file() else None


def picture_of(run: RunFiles, name: str | None) -> str:
    """A thumbnail of the gallery as an address that holds it; "" of what is none.

    By name alone: a run from elsewhere must not put files of this machine into its report.
    """
    gallery = run.path / "gallery"
    file = gallery / Path(name).name if name else None
    try:
        if file is None or not file.is_file() or file.is_symlink() or gallery.is_symlink():
            return ""
        return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"
    except OSError:  # a name that is none, or nothing that may be read
        return ""


def brief(text: str) -> str:
    """Absolute paths without the folders above: they say who ran it and where."""
    return re.sub(r'(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s"/\\]+[/\\])+(?=[^\s"/\\])', "…/", text)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """One at a time. Raises UsageError for a file that is missing or damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
