"""The schema of result.json: what a finished run found.

The pipeline writes the file from a :class:`Result`; summary, report, model card, comparison, trackers and pages
read it as one. docs/result.md and docs/result.schema.json are made from it.

Keys that came later have defaults, so that runs from before read. A run from before states neither ``targets``
nor ``summary_metrics``; they are those of its task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, WrapSerializer, model_validator

from ..errors import UsageError, printable
from ..io import guarded
from ..tasks import kind_of
from . import records
from .confusion import Confusion, rows_of
from .estimates import Estimate, Verdict
from .guarantees import Abstention, SetRule, Sets, Threshold
from .records import MAX_ENTRIES, Count, Figures, Name, Record, Text, need
from .result_parts import (
    Block,
    Calibration,
    CrossValidation,
    Estimates,
    FitSummary,
    Frontier,
    Looks,
    Origin,
    ProbeSummary,
    Resumed,
    Retention,
    RowCounts,
    ScratchSummary,
    Seed,
    Spread,
    Spreads,
    Temperature,
    Timing,
)
from .slices import Slices

FILE = "result.json"

SCHEMA = 1

Targets = Literal["class", "labels", "numbers"]


def or_empty(schema: dict[str, Any]) -> None:
    """Let a JSON schema take {} in place of null."""
    schema["anyOf"] = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    schema["anyOf"].append({"type": "object", "maxProperties": 0})
    schema["default"] = {}


# Without folds the file has {}.
Folds = Annotated[
    CrossValidation | None,
    BeforeValidator(lambda value: None if value == {} else value),
    WrapSerializer(lambda value, dump: {} if value is None else dump(value)),
]


class Result(Record):
    """A finished run's result.json."""

    schema_: Annotated[int, Field(ge=1, le=1)] = Field(SCHEMA, alias="schema", description="version of this schema")
    task: Name = Field(description="name of the task, a file of tasks/")
    targets: Targets = Field(description="a row has one class, any number of labels, or numbers")
    classes: list[Text] = Field(
        min_length=1, max_length=1_000_000, description="classes, labels or numbers, in output order"
    )
    primary: Name = Field(description="metric that choices are made by")
    summary_metrics: list[Name] = Field(max_length=100, description="metrics that a summary shows beside it")
    rows: RowCounts = Field(description="rows of each split")
    test: Estimates = Field(description="metrics of the saved model on test")
    val: Estimates = Field({}, description="metrics of the saved model on val; {} without val")
    controls: dict[Name, Estimates] = Field(max_length=100, description="metrics of each control on test")
    gain: Estimates = Field(description="gain over each control on the primary metric, paired; positive is better")
    gains_over_seeds: list[Name] = Field(
        ["scratch"], description="controls whose gain is over all seeds; the other gains are of the first seed's model"
    )
    verdict: Verdict = Field(description="does transfer help?")
    looks: Looks | None = Field(None, description="looks at the verdict, seed after seed; null: one look at the end")
    test_opened: Count = Field(description="times that these test rows were opened, this one included; 0: not counted")
    seeds: list[Seed] = Field(min_length=1, max_length=MAX_ENTRIES, description="each seed; the first is saved")
    mean: dict[Name, Spreads] = Field(
        max_length=100, description="each arm (fit, α = 1, scratch) over seeds; {} for one seed"
    )
    val_controls: dict[Name, Figures] = Field({}, description="metrics on val of the starting point")
    cross_validation: Folds = Field(
        None, description="probe and fit over the folds of train; {} without folds", json_schema_extra=or_empty
    )
    frontier: Frontier | None = Field(None, description="the frontier; null: there was nothing to choose")
    retention: Retention | None = Field(None, description="retention of the source; null: not measured")
    calibration: Calibration | None = Field(None, description="temperature; null without val or classes")
    sets: Sets | None = Field(
        None, description="sets or intervals at evaluate.coverage; null: off, or a task of several labels"
    )
    abstention: Abstention | None = Field(None, description="rows that are accepted; null without evaluate.max_error")
    fit: FitSummary = Field(description="the fit of the saved model")
    probe: ProbeSummary | None = Field(None, description="the linear probe; null: the source has random weights")
    scratch: ScratchSummary | None = Field(None, description="the scratch control; null without one")
    confusion: Confusion | None = Field(None, description="test rows by true and predicted class; null without classes")
    slices: Slices | None = Field(
        None, description="the saved model on test by the values of named columns; null: no column was named"
    )
    source: Origin = Field(description="the source")
    blocks: list[Block] = Field([], max_length=MAX_ENTRIES, description="blocks of the backbone, from input to output")
    notes: list[Text] = Field([], description="notes on data, source and probe")
    resumed: list[Resumed] = Field([], description="each time that the run was resumed")
    timing: Timing = Field(description="seconds of each stage, and in total")
    status: Literal["finished"] = Field("finished", description="the run ended as it should")

    @property
    def scratch_mean(self) -> Spread | None:
        """Return the primary metric of the scratch control over seeds; None without scratch, or for one seed."""
        return self.mean["scratch"][self.primary] if "scratch" in self.mean else None

    @model_validator(mode="before")
    @classmethod
    def _complete_a_run_from_before(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "targets" in value or not isinstance(value.get("task"), str):
            return value
        try:
            kind = kind_of(value["task"])
        except LookupError:
            return value
        return {"targets": kind.targets, "summary_metrics": list(kind.summary_metrics)} | value

    @model_validator(mode="after")
    def _names_what_it_holds(self) -> Result:
        primary = self.primary
        for metric in (primary, *self.summary_metrics):
            need(metric in self.test, f'test has no "{metric}"')
        for name, figures in self.controls.items():
            need(primary in figures, f'controls.{name} has no "{primary}"')
            need(name in self.gain, f'gain has no "{name}"')
        need(self.verdict.gain or self.verdict.words == "not measured", "verdict.gain is missing")
        for seed in self.seeds:
            for at in (seed.test, seed.scratch):
                need(at is None or primary in at, f'seeds have no "{primary}"')
        for arm, spread in self.mean.items():
            need(arm in ("fit", "scratch", "α = 1"), f'mean has an arm "{arm}"')
            need(primary in spread, f'mean.{arm} has no "{primary}"')
        if self.mean and "scratch" in self.controls:
            need("scratch" in self.mean, "mean.scratch is missing")
        if folds := self.cross_validation:
            known = primary in folds.fit and (folds.probe is None or primary in folds.probe)
            need(known, f'cross_validation has no "{primary}"')
        for point in self.frontier.points if self.frontier else []:
            for metric in (primary, "loss"):
                need(metric in point.figures, f'frontier.points have no "{metric}"')
        if self.slices is not None:
            need(self.slices.primary == primary, f'slices.primary is not "{primary}"')
            self.slices.names_the_primary()
        if self.confusion is not None:
            rows_of(self.confusion, len(self.classes))
        return self


class Unfinished(Record):
    """A result.json that a run left which failed or was interrupted."""

    schema_: int = Field(SCHEMA, alias="schema")
    status: Literal["failed", "interrupted"]
    error: Text = ""


Ended = Annotated[Result | Unfinished, Field(discriminator="status")]


class LogLossGain(Record):
    """The gain of the temperature in log loss."""

    log_loss: Estimate | None = None


class FittedTemperature(Record):
    """The temperature in ``calibration`` and its gain, which is all that a prediction takes of result.json."""

    temperature: Temperature | None = None
    gain: LogLossGain | None = None

    @property
    def refusal(self) -> str:
        """Return why this temperature is not applied, or "" if it is."""
        gained = self.gain.log_loss if self.gain else None
        if self.temperature is None or gained is None or not gained.high < 0:
            return ""
        return (
            f"on test the temperature {self.temperature:.2f} made the log loss worse, by {-gained.value:.3f} "
            f"[{-gained.high:.3f}, {-gained.low:.3f}]: the probabilities are better as they are"
        )


class Calibrated(Record):
    """A result.json for predictions; that of a run which failed is one too."""

    calibration: FittedTemperature | None = None
    sets: SetRule | None = None
    abstention: Threshold | None = None


def read_ended(run: Path) -> Result | Unfinished | None:
    """Return any result.json of a run; None if there is no such file. Raises NotReadError if it is damaged."""
    ended: Result | Unfinished | None = records.read(run, FILE, cast(Any, Ended))
    return ended


def finished(run: Path) -> Result:
    """Return a run's result. Raises UsageError for a folder that is no finished run, or a damaged one."""
    value = guarded.read_json(run, FILE)
    if value is None:
        raise UsageError(f"{guarded.shown(run, FILE)} cannot be read: there is no such file; is this a run folder?")
    if not isinstance(value, dict):
        raise guarded.damaged(run, FILE, "it is no JSON object")
    status, why = (records.text_in(value, key) for key in ("status", "error"))
    if status != "finished":
        raise UsageError(
            f"{guarded.shown(run)} is no finished run: its status is {printable(status) or 'unknown'} "
            f"({printable(why) or 'no reason was kept'})"
        )
    try:
        return records.checked(Result, value)
    except ValueError as error:
        raise guarded.damaged(run, FILE, error) from error
