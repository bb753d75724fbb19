"""The records in a run's files, as far as readers use their fields.

A run folder may come from a stranger, so each record is checked where it is read: numbers are finite and
bounded, texts are texts, lists and names have a length, and what one field names another one holds. Readers
then take the checked value as it is. Fields beyond these are allowed, and fields that came later may be absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from .. import plugins
from ..errors import printable
from ..io import guarded
from .confusion import rows_of
from .estimates import Estimate


def short(most: int) -> AfterValidator:
    """Return the check of a text's length; pydantic's own refuses names of files that are no UTF-8."""

    def check(text: str) -> str:
        need(len(text) <= most, f"it has {len(text):,} characters, and at most {most:,} belong there")
        return text

    return AfterValidator(check)


def need(condition: object, words: str) -> None:
    """Raise ValueError, which becomes a problem of the record that is being checked."""
    if not condition:
        raise ValueError(printable(words))


Text = Annotated[InstanceOf[str], short(1_000_000)]

Name = Annotated[InstanceOf[str], short(10_000)]

Number = Annotated[float, Field(ge=-1e100, le=1e100)]

Whole = Annotated[int, Field(ge=-(2**63), lt=2**64)]

Count = Annotated[int, Field(ge=0, lt=2**53)]

Share = Annotated[float, Field(ge=0, le=1)]

Figures = Annotated[dict[Name, Number | None], Field(max_length=1_000)]

ROWS = 10_000  # entries of a list that a report shows

SHOWN = {
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("map", "micro_f1"),
    "regression": ("mae", "r2"),
}  # metrics that a summary shows of a task


def known_metric(name: str) -> str:
    need(name in plugins.names("metrics"), f'there is no metric "{name[:40]}"')
    return name


def numeral(text: str) -> str:
    need(math.isfinite(float(text[:40])), "it is not finite")
    return text


Metric = Annotated[str, AfterValidator(known_metric)]

Numeral = Annotated[str, AfterValidator(numeral)]


class Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


# ---------------------------------------------------------------- result.json


class Estimated(Record):
    value: Number | None  # None where it is not defined
    low: Number | None
    high: Number | None
    n: Count


Estimates = Annotated[dict[Name, Estimated], Field(max_length=1_000)]


class Spread(Record):
    mean: Number | None
    sd: Number | None


class Seed(Record):
    seed: Whole
    alpha: Number = 1.0


class Verdict(Record):
    words: Literal["transfer helps", "no evidence", "transfer hurts", "not measured"]
    gain: Estimated | None
    why: Text

    @model_validator(mode="after")
    def _has_its_gain(self) -> Verdict:
        need(self.gain or self.words == "not measured", "gain is missing")
        return self


class Counts(Record):
    train: Count
    val: Count
    test: Count


class Fitted(Record):
    fitted: bool
    epochs: Count
    best_epoch: Count
    stopped: Text


class Tensors(Record):
    kept: Count
    resized: Count


class Origin(Record):
    name: Text
    nothing_kept: bool
    tensors: Tensors | None = None
    fresh: list[Text] | None = None
    unused: list[Text] | None = None

    @model_validator(mode="after")
    def _counts_what_was_kept(self) -> Origin:
        known = None not in (self.tensors, self.fresh, self.unused)
        need(self.nothing_kept or known, "tensors, fresh or unused are missing")
        return self


class Bin(Record):
    confidence: Share
    accuracy: Share
    rows: Count


class Reliability(Record):
    before: list[Bin] = Field(max_length=ROWS)
    after: list[Bin] = Field(max_length=ROWS)


class Calibration(Record):
    temperature: Annotated[float, Field(gt=0, le=1e6)]
    before: Estimates
    after: Estimates

    @model_validator(mode="after")
    def _has_its_figures(self) -> Calibration:
        for name in ("ece", "log_loss"):
            need(name in self.before and name in self.after, f"{name} is missing")
        return self


class Retained(Record):
    before: Number
    after: Number
    ratio: Number | None
    low: Number | None


class Point(Record):
    alpha: Share
    figures: Figures
    source: Retained | None = None


class Frontier(Record):
    alpha: Share
    chosen_by: Name
    seed: Whole | None = None
    retain: Share | None = None
    points: list[Point] = Field(max_length=1_000)
    gain: Estimated = Field(alias="gain over alpha 1")


class Forgotten(Record):
    name: Text = Field(alias="class")
    rows: Count
    before: Number | None
    after: Number | None


class OfSourceData(Record):
    kind: Literal["source data"]
    metric: Name
    before: Estimated
    after: Estimated
    forgetting: Estimated
    over_seeds: Estimated | None = Field(alias="forgetting over seeds")
    ratio: Number | None
    claim: bool
    claim_from: Count = Field(alias="claim from")
    most: list[Forgotten] = Field(alias="most forgotten", default=[])


class OfAgreement(Record):
    kind: Literal["agreement on target inputs"]
    agreement: Estimated


class OfFeatures(Record):
    kind: Literal["features on target inputs"]
    cka: Number | None


Retention = Annotated[OfSourceData | OfAgreement | OfFeatures, Field(discriminator="kind")]


class CrossValidation(Record):
    folds: Count
    fit: Estimates
    probe: Estimates | None = Field(alias="linear probe", default=None)
    gain: Estimated | None = None


class Timing(Record):
    __pydantic_extra__: dict[str, Number]

    total: Annotated[float, Field(ge=0, le=1e12)]


class Chosen(Record):
    chosen: Text = ""


class Result(Record):
    """A finished run's result.json, as lists and summaries show it."""

    status: Literal["finished"]
    task: Literal["classification", "multilabel", "regression"]
    classes: list[Text] = Field(min_length=1, max_length=1_000_000)
    primary: Metric
    rows: Counts
    test: Estimates
    val: Estimates = {}
    controls: dict[Name, Estimates] = Field(max_length=100)
    gain: Estimates
    verdict: Verdict
    test_opened: Count
    seeds: list[Seed] = Field(min_length=1, max_length=ROWS)
    mean: dict[Name, dict[Name, Spread]] = Field(max_length=100)
    cross_validation: dict[str, Any]
    frontier: Frontier | None
    retention: Retention | None
    calibration: Calibration | None = None
    fit: Fitted
    scratch: Chosen | None = None
    source: Origin
    timing: Timing
    notes: list[Text] = []

    @model_validator(mode="after")
    def _names_what_it_holds(self) -> Result:
        primary = self.primary
        for metric in (primary, *SHOWN[self.task]):
            need(metric in self.test, f'test has no "{metric}"')
        for name, figures in self.controls.items():
            need(primary in figures, f'controls.{name} has no "{primary}"')
            need(name in self.gain, f'gain has no "{name}"')
        for arm, spread in self.mean.items():
            need(primary in spread, f'mean.{arm} has no "{primary}"')
        if self.mean and "scratch" in self.controls:
            need("scratch" in self.mean, "mean.scratch is missing")
        if self.cross_validation:
            folds = CrossValidation.model_validate(self.cross_validation)
            known = primary in folds.fit and (folds.probe is None or primary in folds.probe)
            need(known, f'cross_validation has no "{primary}"')
            need(folds.probe is None or folds.gain, "cross_validation.gain is missing")
        for point in self.frontier.points if self.frontier else []:
            for metric in (primary, "loss"):
                need(metric in point.figures, f'frontier.points have no "{metric}"')
        return self


class SeedLine(Seed):
    best_epoch: Count
    val: Figures
    test: Figures
    scratch: Figures | None


class FullOrigin(Origin):
    digest: Text
    licence: Text


class Temperature(Record):
    temperature: Annotated[float, Field(gt=0, le=1e6)] | None = None


class Calibrated(Record):
    """What predictions take of a result.json, that of a failed run too."""

    calibration: Temperature | None = None


class FullCalibration(Calibration):
    fitted_on: Count
    gain: Estimates
    reliability: Reliability

    @model_validator(mode="after")
    def _has_its_gains(self) -> FullCalibration:
        need({"ece", "log_loss"} <= self.gain.keys(), "gain has no ece or log_loss")
        return self


class Block(Record):
    name: Text
    parameters: Count
    state: Name
    first_epoch: Count | None
    rate: Number
    over_scratch: Number
    weight_decay: Number
    anchored: bool
    drift: Number | None


class Cells(Record):
    """The cells of a large confusion matrix that are not zero."""

    truth: list[Count]
    predicted: list[Count]
    rows: list[Count]


Confusion = TypeAdapter[Any](list[list[Count]] | Cells)


class FullResult(Result):
    """The same, as reports and model cards show it."""

    seeds: list[SeedLine] = Field(min_length=1, max_length=ROWS)  # type: ignore[assignment]
    source: FullOrigin
    calibration: FullCalibration | None = None
    confusion: Any
    blocks: list[Block] = Field(max_length=ROWS, default=[])

    @model_validator(mode="after")
    def _counts_by_seed_and_class(self) -> FullResult:
        for seed in self.seeds:
            for figures in (seed.test, seed.scratch):
                need(figures is None or self.primary in figures, f'seeds have no "{self.primary}"')
        if self.confusion is not None:
            Confusion.validate_python(self.confusion, strict=True)
            rows_of(self.confusion, len(self.classes))
        for arm in self.mean:
            need(arm in ("fit", "scratch", "α = 1"), f'mean has an arm "{arm}"')
        return self


class Solver(Record):
    strength: Number
    chosen_by: Name
    losses: dict[Numeral, Number | None]


class FitRecord(Fitted):
    steps: Count
    best: Figures
    start: Figures


class Rewritable(Result):
    """The same, as what another point of the frontier is made from."""

    probe: Solver
    fit: FitRecord


class Unfinished(Record):
    """What a run that ended before its end left."""

    status: Literal["failed", "interrupted"]
    error: Text = ""


Ended = Annotated[Result | Unfinished, Field(discriminator="status")]  # any result.json


# ---------------------------------------------------------------- other files


class HistoryLine(Record):
    """A line of history.jsonl: an epoch of a seed."""

    seed: Whole
    epoch: Count
    terms: Annotated[dict[Name, Number | None], Field(max_length=50)]
    rates: Annotated[dict[Name, Number], Field(max_length=10_000)]
    val: Figures
    best: bool
    source: Figures = {}


class Environment(Record):
    regraft: Name
    python: Name
    versions: Annotated[dict[Name, Name | None], Field(max_length=1_000)]
    device: Name
    device_name: Name
    threads: Count
    processes: Annotated[int, Field(ge=1, lt=2**20)] = 1
    data_digest: Name
    test_digest: Name
    source_digest: Name | None = None
    source_data_digest: Name | None = None


class ManifestRow(Record):
    id: Name
    hash: Name = ""
    split: Literal["train", "val", "test"]
    cells: list[Text]
    where: Text
    group: Text | None = None


class Finding(Record):
    severity: Name
    what: Text
    count: Count
    of: Count
    remedy: Text
    examples: list[Text]


class Findings(Record):
    findings: list[Finding] = Field(max_length=ROWS)


class Thumbnail(Record):
    where: Text
    truth: Text
    predicted: Text
    picture: Name | None = None
    text: Text | None = None


class WorstError(Thumbnail):
    probability: Share | None


class Suspect(Thumbnail):
    split: Name
    probability: Share
    of_truth: Share = Field(alias="probability of truth")


class Suspects(Record):
    why_not: Text = Field(alias="why not")
    count: Count
    of: Count
    rows: list[Suspect] = Field(max_length=ROWS)


class TaskState(Record):
    """labels.json, and the task of config.json; each task reads its own fields beside these."""

    task: Literal["classification", "multilabel", "regression"]
    classes: list[Text] = Field(min_length=1, max_length=1_000_000)
    primary: Metric


class ClassificationState(TaskState):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    weights: list[Number] | None

    @model_validator(mode="after")
    def _weighs_each_class(self) -> ClassificationState:
        weighed = self.weights is None or len(self.weights) == len(self.classes)
        need(weighed, "weights are not one for each class")
        return self


class MultiLabelState(TaskState):
    threshold: Share
    separator: Annotated[str, Field(min_length=1, max_length=100)]
    one_column: bool


class RegressionState(TaskState):
    loss: Literal["mse", "huber", "l1"]
    huber_delta: Annotated[float, Field(gt=0, le=1e100)]
    mean: list[Number]
    std: list[Annotated[float, Field(gt=0, le=1e100)]]

    @model_validator(mode="after")
    def _scales_each_number(self) -> RegressionState:
        sizes = {len(self.classes), len(self.mean), len(self.std)}
        need(len(sizes) == 1, "mean and std are not one for each number")
        return self


STATES: dict[str, type[TaskState]] = {
    "classification": ClassificationState,
    "multilabel": MultiLabelState,
    "regression": RegressionState,
}


class ConfigTask(Record):
    task: Literal["classification", "multilabel", "regression"]
    classes: list[Text] = Field(max_length=1_000_000, default=[])


class ModelConfig(Record):
    """model/config.json; its source builds the recipe, and refuses what it does not know."""

    schema_: Annotated[int, Field(ge=1, le=1, alias="schema")]  # and not true
    recipe: dict[str, Any]
    task: ConfigTask


class Resumed(Record):
    time: Name = ""
    changes: list[Text] = []


# ---------------------------------------------------------------- checkpoints


class Free(BaseModel):
    """A record of a checkpoint: a figure may be infinite, and what stands in it goes into a dataclass."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ProgressRecord(Free):
    epoch: Count
    step: Count
    batches: Count = 0
    sums: dict[str, float] = {}
    trainable: list[str] = []
    thawed: dict[str, Count] = {}
    rates: dict[str, float] = {}
    drawn: dict[str, Count] = {}
    start: dict[str, float] = {}
    best: dict[str, float] = {}
    best_epoch: Count = 0


class RetainedRecord(Free):
    before: float
    after: float
    ratio: float | None
    low: float | None


class PointRecord(Free):
    alpha: Share
    figures: dict[str, float]
    source: RetainedRecord | None


class ArmFit(Free):
    best_epoch: Count
    epochs: Count
    steps: Count
    best: dict[str, float]
    start: dict[str, float]
    stopped: Text


class ArmRecord(Record):
    """What an arm that is done left beside its tensors."""

    fit: ArmFit
    alpha: Share
    points: list[PointRecord]


class ProbeRecord(Record):
    strength: Number
    losses: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    chosen_by: Text


class AboutRun(Record):
    history: Count = 0
    reuse: dict[str, Literal["live", "kept"]] = {}
    seconds: dict[str, Annotated[float, Field(ge=0, le=1e12)]] = {}


class CheckpointRecord(Record):
    count: Count
    about: AboutRun = AboutRun()
    part: Name | None = None
    arm: Name | None = None
    at: ProgressRecord | None = None

    @model_validator(mode="after")
    def _says_of_what(self) -> CheckpointRecord:
        of_arm = self.arm is not None and self.at is not None
        need(self.part is not None or of_arm, "neither a part nor an arm and where it was")
        return self


# ---------------------------------------------------------------- reading them


def number_of(value: float | None) -> float:
    """Return a number of a record; NaN where it is not defined, which JSON has no number for."""
    return math.nan if value is None else float(value)


def estimate_of(record: Mapping[str, Any]) -> Estimate:
    """Return an Estimated as regraft computes with it."""
    value, low, high = (number_of(record[part]) for part in ("value", "low", "high"))
    return Estimate(value, low, high, record["n"])


Model = TypeVar("Model", bound=Record)


def problem(model: Any, value: Any) -> str | None:
    """Return what is wrong with a value, naming the field, in one line; None where nothing is."""
    try:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model.model_validate(value)
        else:
            TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        tags = ("finished", "failed", "interrupted")  # which a union puts before the field's own place
        parts = [str(part) for part in first["loc"]]
        place = ".".join(parts[1:] if parts[:1] and parts[0] in tags else parts)[:200]
        said = str(first["msg"]).removeprefix("Value error, ")[:300]
        more = f" (and {len(others)} more)" if others else ""
        return f"{place}: {said}{more}" if place else f"{said}{more}"
    return None


def read(run: Path, name: str, model: Any) -> Any:
    """Return the checked value of a JSON file of a run; None where there is no such file.

    Raises NotReadError, naming the file and the field.
    """
    value = guarded.read_json(run, name)
    if value is not None and (why := problem(model, value)):
        raise guarded.damaged(run, name, why)
    return value


def read_lines(run: Path, name: str, model: type[Record]) -> list[dict[str, Any]]:
    """Return the checked records of a .jsonl file; none where there is no such file. Raises NotReadError."""
    data = guarded.read(run, name)
    lines = [] if data is None else data.removesuffix(b"\n").split(b"\n") if data else []
    return [line_of(run, name, i, line, model) for i, line in enumerate(lines, 1)]


def line_of(run: Path, name: str, number: int, line: bytes, model: type[Record]) -> dict[str, Any]:
    """Return the checked record of one line. Raises NotReadError, naming the file, line and field."""
    try:
        value = guarded.parse_json(line)
    except ValueError as error:
        raise guarded.damaged(run, name, f"line {number}: {error}") from error
    if why := problem(model, value):
        raise guarded.damaged(run, name, f"line {number}: {why}")
    return dict(value)


def text_in(record: Mapping[str, Any], key: str) -> str:
    """Return a text of a record that was not checked; "" where there is none."""
    value = record.get(key)
    return value if isinstance(value, str) else ""
