"""Findings of the checks: every file of checks/ that has what it needs runs, and its findings become text.

Checks that need the rows alone run in every fit (``cheap``). ``regraft check`` computes what the others need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from .. import plugins
from ..checks import Check, CheckContext, Finding, Need, Severity
from ..data.types import Example, Splits
from ..errors import printable
from ..tasks import Task, TaskKind

ORDER: tuple[Severity, ...] = ("problem", "caution", "note")

SHOWN = 3  # examples of a finding on the terminal

CLASSES_SHOWN = 20  # of a split's classes, on the terminal

SAVED = 1_000  # and in JSON

WHY: dict[Need, str] = {
    "features": "needs a source (--source REF)",
    "probabilities": "needs a source (--source REF) and classes, each of 2 rows or more",
    "tokens": "needs a source that reads texts (--source REF)",
    "source names": "needs a source that names its classes (--source REF), or --source-data PATH",
    "source rows": "needs --source-data PATH",
}


@dataclass(frozen=True)
class CheckReport:
    """All that was found, the gravest first, and what was not looked at."""

    data: str
    source: str
    kind: str
    rows: dict[str, int]  # split → rows
    findings: tuple[Finding, ...]
    not_run: dict[str, str] = field(default_factory=dict)  # check → why
    classes: dict[str, dict[str, int]] = field(default_factory=dict)  # split → class → rows
    notes: tuple[str, ...] = ()  # how the data were read and divided

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    @property
    def problems(self) -> int:
        return self.count("problem")

    def record(self) -> dict[str, Any]:
        """Return plain JSON, with the first SAVED examples of each finding."""
        return asdict(replace(self, findings=())) | {"findings": records(self.findings)}


def records(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(f) | {"examples": list(f.examples[:SAVED])} for f in findings]


def cheap(splits: Splits, task: Task) -> tuple[Finding, ...]:
    """Return the findings of checks that need the rows alone: no features, no second look at a file."""
    return in_order(run_checks(seen_of(splits, task))[0])


def run_checks(seen: CheckContext) -> tuple[list[Finding], dict[str, str]]:
    """Run every check that has what it needs; return the findings, and why the other checks did not run."""
    there: dict[Need, bool] = {
        "features": seen.features is not None,
        "probabilities": seen.probabilities is not None,
        "tokens": seen.tokens is not None,
        "source names": seen.source_names is not None,
        "source rows": seen.source_rows is not None,
    }
    findings: list[Finding] = []
    not_run: dict[str, str] = {}
    for name in plugins.names("checks"):
        module = cast("Check", plugins.module("checks", name))
        if "tokens" in module.NEEDS and seen.kind != "text":
            continue
        if missing := [need for need in sorted(module.NEEDS) if not there[need]]:
            not_run[name] = WHY[missing[0]]
            continue
        findings += [replace(f, check=name) for f in module.check(seen)]
    return findings, not_run


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (ORDER.index(f.severity), f.check)))


def seen_of(splits: Splits, task: TaskKind) -> CheckContext:
    """Return what checks may look at; of a task's options where there is no task."""
    return CheckContext(
        kind=splits.kind,
        task=task.name,
        splits={"train": splits.train, "val": splits.val, "test": splits.test},
        names=lambda row: task.names(row.cells),
        unreadable=splits.unreadable,
        left_out=splits.left_out,
        empty=splits.empty,
    )


def classes_of(splits: Splits, task: Task) -> dict[str, dict[str, int]]:
    """Return split → class or label → rows; nothing where the task has none."""
    seen = seen_of(splits, task)
    return {s: count_classes(rows, seen.names) for s, rows in seen.splits.items()}


def count_classes(rows: Sequence[Example], names: Callable[[Example], tuple[str, ...]]) -> dict[str, int]:
    """Return class → rows, by name."""
    return dict(sorted(Counter(name for e in rows for name in names(e)).items()))


# ---------------------------------------------------------------- in words


def class_lines(classes: dict[str, dict[str, int]]) -> Iterator[str]:
    """Yield a line a split that names its classes and counts their rows; the largest where they are many."""
    for split, counts in classes.items():
        if not counts:
            continue
        shown = sorted(counts, key=lambda name: (-counts[name], name))[:CLASSES_SHOWN]
        names = [f"{printable(n)} {counts[n]:,}" for n in (counts if len(counts) <= len(shown) else shown)]
        more = len(counts) - len(shown)
        least = f", … and {more} more, the smallest {min(counts.values()):,}" if more else ""
        word = "1 class" if len(counts) == 1 else f"{len(counts)} classes"
        yield f"{split}: {word}: {', '.join(names)}{least}"


def in_words(found: CheckReport) -> str:
    """Return the list as the terminal shows it."""
    rows = ", ".join(f"{s} {n:,}" for s, n in found.rows.items())
    head = f"{found.data}: {sum(found.rows.values()):,} {found.kind}s that can be used ({rows})"
    lines = [head + (f"; source {found.source}" if found.source else "")]
    lines += [*class_lines(found.classes), *(f"note: {printable(n)}" for n in found.notes)]
    for f in found.findings:
        lines += ["", *finding_in_words(f)]
    counts = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in ((s, found.count(s)) for s in ORDER))
    lines += ["", counts if found.findings else "nothing found"]
    reasons: dict[str, list[str]] = {}
    for name, why in found.not_run.items():
        reasons.setdefault(why, []).append(name)
    if any(len(f.examples) > SHOWN for f in found.findings):
        lines.append("--out FILE writes the examples that are not shown")
    lines += [f"not looked at: {', '.join(names)} {why}" for why, names in reasons.items()]
    return "\n".join(lines)


def finding_in_words(f: Finding) -> Iterator[str]:
    yield f"{f.severity.upper():<8} {one_line(f)}"
    for example in f.examples[:SHOWN]:
        yield f"           {printable(example)}"
    if len(f.examples) > SHOWN:
        yield f"           and {len(f.examples) - SHOWN:,} more"
    yield f"         → {f.remedy}"


def one_line(f: Finding) -> str:
    return f"{f.check}: {f.count:,} of {f.of:,} {f.what}"
