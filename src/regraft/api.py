"""regraft from Python: one call for the whole job, and the pieces it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands.check import check as looked
from .commands.choose import Choice
from .commands.choose import choose as compared
from .io.log import lines_to
from .model.types import Source
from .pipeline.findings import CheckReport
from .pipeline.run import RunOptions
from .pipeline.run import run as run_plan
from .plan import read as plan_read
from .plan.read import set_key
from .plan.schema import Plan
from .runs.estimates import Estimate, Verdict
from .runs.result import Result, finished
from .runs.summary import summary

if TYPE_CHECKING:
    from .publish.export import Exported


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its result.json."""

    path: Path
    result: Result

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Return a run. Raises UsageError for a folder that is no finished run."""
        return cls(Path(path), finished(Path(path)))

    @property
    def test(self) -> dict[str, Estimate]:
        """Return the metrics of the saved model on test."""
        return self.result.test

    @property
    def val(self) -> dict[str, Estimate]:
        """Return the metrics of the saved model on val; none without val."""
        return self.result.val

    @property
    def gain(self) -> dict[str, Estimate]:
        """Return the gain over each control on the primary metric, paired; positive is better."""
        return self.result.gain

    @property
    def verdict(self) -> Verdict:
        """Return the answer to "does transfer help?"."""
        return self.result.verdict

    def report(self, out: str | Path | None = None) -> Path:
        """Write the run's report, one HTML file, in its folder or at ``out``; → its path."""
        from .report.render import report

        return report([self.path], None if out is None else Path(out))

    def export(self, to: str, out: str | Path | None = None, **how: Any) -> Exported:
        """Export the model for other programs; see :func:`regraft.publish.export.export`."""
        from .publish.export import export

        return export(self.path, to, out, **how)

    def __str__(self) -> str:
        return summary(self.path, self.result)


def fit(
    data: str | Path,
    *,
    source: str | Source,
    out: str | Path,
    settings: dict[str, Any] | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
    resume: bool = False,
    accept_changes: bool = False,
    **sections: Any,
) -> Run:
    """Fine-tune ``source`` on ``data`` and write the run folder ``out``.

    ``settings`` has dotted keys ("fit.epochs": 3); keyword arguments are whole sections
    (``fit={"epochs": 3}``, ``task={"name": "regression"}``). ``resume`` goes on with a run that was
    left, bit for bit; changed data or plan are refused, or recorded with ``accept_changes``.

    Raises PlanError, DataError, SourceError, DivergedError or DiskError.
    """
    named = {"run.out": str(out)}
    plan = as_plan(data, source, named | (settings or {}), sections, allow_code)
    given = source if isinstance(source, Source) else None
    options = RunOptions(resume, accept_changes, source=given)
    with lines_to(say):
        return Run.read(run_plan(plan, options))


def check(
    data: str | Path,
    *,
    source: str | Source = "",
    settings: dict[str, Any] | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **sections: Any,
) -> CheckReport:
    """Look at data, and at what ``source`` makes of them, without training: a list of findings.

    ``settings`` and keyword arguments are those of ``fit``; source data go in as
    ``source_data={"path": …}``.

    Raises DataError where the data do not read at all, PlanError or SourceError as ``fit`` does.
    """
    plan = as_plan(data, source, settings or {}, sections, allow_code)
    given = source if isinstance(source, Source) else None
    with lines_to(say):
        return looked(plan, source=given)


def choose(
    data: str | Path,
    sources: Sequence[str | Source],
    *,
    most: int = 8,
    finetune: int = 0,
    settings: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **sections: Any,
) -> Choice:
    """Compare sources on the labelled rows outside test; ``.leader`` is the best one, and ``.ties`` those like it.

    "auto" among ``sources`` stands for those that are installed or cached. With more than ``most`` of them, the best
    by H-score are probed. The best ``finetune`` of them are fine-tuned too. ``settings`` and keyword arguments are
    those of ``fit``.

    Raises UsageError, SourceError where fewer than two sources can be used, PlanError or DataError.
    """
    plan = as_plan(data, "", settings or {}, sections, allow_code=False)
    with lines_to(say):
        return compared(plan, sources, most=most, finetune=finetune)


def as_plan(
    data: str | Path, source: str | Source, settings: dict[str, Any], sections: dict[str, Any], allow_code: bool
) -> Plan:
    """Return the plan of a call. Raises PlanError with every problem at once."""
    tree: dict[str, Any] = {k: dict(v) for k, v in sections.items()}
    set_key(tree, ["data", "path"], str(data))
    set_key(tree, ["source", "ref"], source if isinstance(source, str) else source.name)
    for key, value in settings.items():
        set_key(tree, key.split("."), value)
    return plan_read.check(tree, allow_code=allow_code)
