"""A run folder as the report reads it."""

from __future__ import annotations

import base64
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..errors import UsageError, printable
from ..io import guarded
from ..runs import records
from ..runs.folder import finished, read_json

SEEDS = 200  # whose curves are drawn


@dataclass(frozen=True)
class RunFiles:
    """What a finished run left behind; each file is read when it is first asked for."""

    path: Path
    result: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunFiles:
        """Raises UsageError for a folder that is no finished run."""
        return cls(path, finished(path, records.FullResult))

    @property
    def name(self) -> str:
        return printable(self.path.resolve().name)

    @property
    def primary(self) -> str:
        return str(self.result["primary"])

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """A line an epoch; none where a point was chosen without training."""
        name = "history.jsonl"
        found = records.read_lines(self.path, name, records.HistoryLine)
        for i, line in enumerate(found, 1):
            if line["val"] and self.primary not in line["val"]:
                raise guarded.damaged(self.path, name, f'line {i}: val has no "{self.primary}"')
        if len({line["seed"] for line in found}) > SEEDS:
            raise guarded.damaged(self.path, name, f"it has more than {SEEDS} seeds")
        return found

    @cached_property
    def manifest(self) -> dict[str, Counter[str]]:
        """split → label → rows."""
        found: dict[str, Counter[str]] = {}
        name = "manifest.jsonl"
        for number, line in guarded.lines(self.path, name):
            row = records.line_of(self.path, name, number, line, records.ManifestRow)
            found.setdefault(row["split"], Counter())[";".join(row["cells"])] += 1
        return found

    @cached_property
    def environment(self) -> dict[str, Any]:
        return dict(read_json(self.path, "environment.json", records.Environment))

    @cached_property
    def plan(self) -> str:
        """The plan's text, folders left out of its paths."""
        text = guarded.text(self.path, "plan.toml")
        if text is None:
            raise UsageError(f"{guarded.shown(self.path, 'plan.toml')} is missing")
        return brief(text)

    @cached_property
    def findings(self) -> list[dict[str, Any]] | None:
        """What the checks found before the run, the gravest first; None of runs without them."""
        found = records.read(self.path, "check.json", records.Findings)
        return None if found is None else list(found["findings"])

    @cached_property
    def gallery(self) -> list[dict[str, Any]] | None:
        """The worst errors; None of runs that kept none."""
        model = Annotated[list[records.WorstError], Field(max_length=records.ROWS)]
        found = records.read(self.path, "gallery/gallery.json", model)
        return None if found is None else list(found)

    @cached_property
    def suspects(self) -> dict[str, Any] | None:
        """Labels that are probably wrong; None of runs that did not look for them."""
        found = records.read(self.path, "gallery/suspects.json", records.Suspects)
        return None if found is None else dict(found)


def picture_of(run: RunFiles, name: str | None) -> str:
    """A thumbnail of the gallery as an address that holds it; "" of what is none.

    By name alone: a run from elsewhere must not put files of this machine into its report.
    """
    if not name or not (file := Path(name).name):
        return ""
    try:
        data = guarded.read(run.path, f"gallery/{file}")
    except guarded.NotReadError:  # a name that is none, or nothing that may be read
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""


def brief(text: str) -> str:
    """Absolute paths without the folders above: they say who ran it and where."""
    return re.sub(r'(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s"/\\]+[/\\])+(?=[^\s"/\\])', "…/", text)
