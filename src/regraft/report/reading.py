"""The files of a run folder, as the report reads them."""

from __future__ import annotations

import base64
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import UsageError, printable
from ..io import guarded
from ..runs import records
from ..runs.folder import read_json
from ..runs.result import Result, finished
from ..runs.side_files import Environment, Finding, Findings, Gallery, HistoryLine, ManifestRow, Suspects, WorstError

MAX_SEEDS = 200  # whose curves are drawn


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run; each is read when it is first used.

    A file that is missing raises UsageError, and a damaged one NotReadError.
    """

    path: Path
    result: Result

    @classmethod
    def read(cls, path: Path) -> RunFiles:
        """Return a run's files. Raises UsageError for a folder that is no finished run."""
        return cls(path, finished(path))

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return printable(self.path.resolve().name)

    @property
    def primary(self) -> str:
        """Return the metric that choices were made by."""
        return self.result.primary

    @cached_property
    def history(self) -> list[HistoryLine]:
        """Return a line for each epoch; none if a point was chosen without training."""
        name = "history.jsonl"
        lines = list(records.read_lines(self.path, name, HistoryLine))
        for i, line in enumerate(lines, 1):
            if line.val and self.primary not in line.val:
                raise guarded.damaged(self.path, name, f'line {i}: val has no "{self.primary}"')
        if len({line.seed for line in lines}) > MAX_SEEDS:
            raise guarded.damaged(self.path, name, f"it has more than {MAX_SEEDS} seeds")
        return lines

    @cached_property
    def manifest(self) -> dict[str, Counter[str]]:
        """Return the rows of each label, by split."""
        counts: dict[str, Counter[str]] = {}
        name = "manifest.jsonl"
        for number, line in guarded.lines(self.path, name):
            row = records.line_of(self.path, name, number, line, ManifestRow)
            counts.setdefault(row.split, Counter())[";".join(row.cells)] += 1
        return counts

    @cached_property
    def environment(self) -> Environment:
        """Return versions, hardware and digests."""
        return read_json(self.path, "environment.json", Environment)

    @cached_property
    def plan(self) -> str:
        """Return the plan's text, without the folders in its paths."""
        text = guarded.text(self.path, "plan.toml")
        if text is None:
            raise UsageError(f"{guarded.shown(self.path, 'plan.toml')} is missing")
        return brief(text)

    @cached_property
    def findings(self) -> list[Finding] | None:
        """Return the findings of the checks, the gravest first; None if the run has no check.json."""
        file = records.read(self.path, "check.json", Findings)
        return None if file is None else file.findings

    @cached_property
    def gallery(self) -> list[WorstError] | None:
        """Return the worst errors; None if the run has no gallery."""
        errors: list[WorstError] | None = records.read(self.path, "gallery/gallery.json", Gallery)
        return errors

    @cached_property
    def suspects(self) -> Suspects | None:
        """Return labels that are probably wrong; None if the run did not judge them."""
        return records.read(self.path, "gallery/suspects.json", Suspects)


def picture_of(run: RunFiles, name: str | None) -> str:
    """Return a thumbnail of the gallery as a data: address; "" if there is none.

    Only the name is used, because a run from elsewhere must not put files of this machine into its report.
    """
    if not name or not (file := Path(name).name):
        return ""
    try:
        data = guarded.read(run.path, f"gallery/{file}")
    except guarded.NotReadError:  # a name that is none, or nothing that may be read
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""


def brief(text: str) -> str:
    """Return a text without the folders of its absolute paths, because they tell who ran it and where."""
    return re.sub(r'(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s"/\\]+[/\\])+(?=[^\s"/\\])', "…/", text)
