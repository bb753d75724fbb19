"""``regraft compare``: the runs, ranked by the rows that chose, with the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RegraftError, printable
from ..evidence.comparison import Compared, about, compare, ranked
from ..pipeline.run import FREE, flat, shown
from ..plan.read import read_run_plan


def compare_runs(runs: Sequence[Path]) -> tuple[list[Compared], list[dict[str, Any]]]:
    """Return the runs in the order given, and of each the settings that are not those of every run.

    Raises UsageError for runs that cannot be compared.
    """
    return compare(runs), differing([settings_of(run) for run in runs])


def settings_of(run: Path) -> dict[str, Any]:
    """Return a run's settings by dotted key; none of a plan that cannot be read, for example without its code."""
    try:
        return flat(read_run_plan(run).model_dump(exclude_none=True))
    except RegraftError:
        return {}


def differing(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each run's settings those that differ between runs, without what changes no result."""
    known = [s for s in settings if s]
    keys = sorted({key for s in known for key in s} - FREE)
    apart = [key for key in keys if any(s.get(key) != known[0].get(key) for s in known)]
    return [{key: s[key] for key in apart if key in s} for s in settings]


def in_words(lines: Sequence[Compared], settings: Sequence[dict[str, Any]]) -> str:
    """Return a table for the terminal."""
    wide = max(len(line.run) for line in lines)
    out = [f"{lines[0].primary} on test, n = {lines[0].test.n}; the best on held-out rows first"]
    for i in ranked(lines):
        line = lines[i]
        by = "" if line.held_out is None else f"   {line.held_out_by} {line.held_out:.3f}"
        text = f"{line.run:<{wide}}{by}   test {line.test}"
        if line.gain is not None:
            text += f"   {line.gain.text('+')}" + (f" over {line.over_seeds} seeds" if line.over_seeds else "")
        out.append(printable(f"{text}   {line.source}"))
        if settings[i]:
            out.append(printable("    " + ", ".join(f"{key} = {shown(value)}" for key, value in settings[i].items())))
    several = "" if len(lines) == 2 else f", all {len(lines) - 1} intervals together at 95 % (Bonferroni)"
    out.append(
        f"Differences are to {lines[0].run}, paired on the same rows{several}; positive is better. {about(lines)}"
    )
    return "\n".join(out)


def records(lines: Sequence[Compared], settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return plain values for --json, in the order given."""
    return [{**asdict(line), "settings": own} for line, own in zip(lines, settings, strict=True)]
