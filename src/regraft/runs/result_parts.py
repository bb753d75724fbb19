"""The parts of result.json: arms, source, frontier, retention, calibration, blocks.

A key with spaces in the file is an attribute with underscores here.
"""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, RootModel, SerializerFunctionWrapHandler, model_serializer, model_validator

from .estimates import Estimate, Point
from .records import (
    MAX_ENTRIES,
    Count,
    Figure,
    Figures,
    MaybeNumber,
    Name,
    Number,
    Numeral,
    Record,
    Seconds,
    Share,
    Text,
    Whole,
    need,
)

Estimates = Annotated[dict[Name, Estimate], Field(max_length=1_000)]

Temperature = Annotated[float, Field(gt=0, le=1e6, description="temperature that divides the logits")]


class Sparse(Record):
    """A record that leaves out of the file those of its keys that do not apply."""

    left_out: ClassVar[tuple[str, ...]]  # keys that the file lacks if they are null

    @model_serializer(mode="wrap")
    def _only_what_applies(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in dump(self).items() if v is not None or k not in self.left_out}


# ---------------------------------------------------------------- arms


class RowCounts(Record):
    """Rows of each split."""

    train: Count = Field(description="rows of train")
    val: Count = Field(description="rows of val; 0: choices were made by folds, or not at all")
    test: Count = Field(description="rows of test")


class Spread(Record):
    """A metric over the seeds of an arm."""

    mean: Figure = Field(description="mean over seeds")
    sd: Figure = Field(description="standard deviation over seeds, with S − 1")


Spreads = Annotated[dict[Name, Spread], Field(max_length=1_000)]


class Seed(Record):
    """A seed's fit, at its chosen point and at α = 1, and its scratch model."""

    seed: Whole = Field(description="the seed")
    best_epoch: Count = Field(description="best epoch on val; 0: the starting point")
    epochs: Count = Field(description="epochs that were run")
    alpha: Number = Field(1.0, description="chosen α of the frontier")
    val: Figures = Field(
        description="metrics on val at the chosen point: the best of the epochs and points tried, so too high"
    )
    test: Figures = Field(description="metrics on test at the chosen point")
    test_at_alpha_1: Figures = Field({}, alias="test at alpha 1", description="metrics on test at α = 1")
    scratch: Figures | None = Field(description="metrics on test of the model from scratch; null without one")


class FitSummary(Record):
    """The fit of the saved model."""

    best_epoch: Count = Field(description="best epoch on val; 0: the starting point")
    epochs: Count = Field(description="epochs that were run")
    steps: Count = Field(description="optimizer steps")
    best: Figures = Field(description="figures on val at the best epoch: the best of those tried, so too high")
    start: Figures = Field(description="figures on val at the starting point")
    stopped: Text = Field(description="why training ended")
    fitted: bool = Field(description="false: by cross-validation the linear probe was better, and is the model")


class ProbeSummary(Record):
    """The linear probe on the source's features."""

    strength: Number = Field(description="λ, the strength of its penalty")
    chosen_by: Name = Field(description="rows that λ was chosen on: val, or folds")
    rows: Count = Field(0, description="rows of train that it was fitted on; 0: not recorded")
    of: Count = Field(0, description="rows of train; 0: not recorded")
    passes: Count = Field(0, description="passes over all rows after the fit on a part")
    losses: dict[Numeral, Figure] = Field(description="loss by λ, where it was chosen")


class ScratchSummary(Record):
    """The control that starts from random weights."""

    budget: Name = Field(description="epochs or steps that it was given")
    chosen: Text = Field("", description="its learning rate, and what that was chosen by")
    steps: list[Count] = Field(description="optimizer steps of each seed")
    best_epochs: list[Count] = Field([], description="best epoch of each seed")


class Looks(Record):
    """The looks at the verdict of a run whose number of seeds was "auto": they are one planned opening of test."""

    planned: Count = Field(description="looks that were planned at most; their intervals hold together at 95 %")
    taken: Count = Field(description="looks that were taken")
    first: Count = Field(description="seeds at the first look")
    most: Count = Field(description="seeds at the last look that was planned")
    level: Share = Field(description="level of the interval at the last look, and so of the gain over scratch")
    ended: Literal["decided", "futile", "last"] = Field(
        description="why no further seed was fitted; futile: the test rows alone leave the verdict open at this gain"
    )


class CrossValidation(Sparse):
    """Probe and fit over the folds of train: each row is scored by a model that was not fitted on it."""

    left_out = ("linear probe", "gain")

    folds: Count = Field(description="folds")
    fit: Estimates = Field(description="metrics of the fit at α = 1")
    probe: Estimates | None = Field(None, alias="linear probe", description="metrics of the linear probe")
    gain: Estimate | None = Field(None, description="gain of the fit over the probe, paired")

    @model_validator(mode="after")
    def _probe_has_its_gain(self) -> CrossValidation:
        need(self.probe is None or self.gain, "gain is missing")
        return self


class Timing(RootModel[dict[Name, Seconds]]):
    """Seconds of each stage, and "total"."""

    @model_validator(mode="after")
    def _has_a_total(self) -> Timing:
        need("total" in self.root, "total is missing")
        return self

    @property
    def total(self) -> float:
        """Return the seconds of the whole run, those before a resume included."""
        return self.root["total"]

    def items(self) -> ItemsView[str, float]:
        """Return (stage, seconds) in the order of the run."""
        return self.root.items()


class Resumed(Record):
    """A line of resumes.jsonl: when a run was resumed, and what had changed."""

    time: Name = Field("", description="local time")
    changes: list[Text] = Field([], description="changes of plan, data or source that were accepted")
    done: list[Text] = Field([], description="parts that were finished before")
    environment: list[Text] = Field([], description="versions and hardware that differ")


# ---------------------------------------------------------------- the source and what became of it


class TensorCounts(Record):
    """Tensors of the backbone by where their values came from."""

    kept: Count = Field(description="copied from the source")
    fresh: Count = Field(0, description="initialised at random")
    resized: Count = Field(description="copied, and interpolated to another shape")
    unused: Count = Field(0, description="of the source, without a place in the target")


class Origin(Record):
    """The source that the run started from."""

    name: Text = Field(description="the source's reference")
    digest: Text = Field(description='sha256 of its weights; "" if there are none')
    licence: Text = Field(description='its licence, or "unknown"')
    features: Count = Field(0, description="width D of its features; 0: not recorded")
    tensors: TensorCounts = Field(description="tensors of the backbone")
    fresh: list[Text] = Field(description="names of the tensors that were initialised at random")
    unused: list[Text] = Field(description="names of the source's tensors without a place in the target")
    nothing_kept: bool = Field(description="true: random weights, so that there is no transfer to measure")


class Block(Record):
    """A block of the backbone: how it was trained, and how far it moved."""

    name: Text = Field(description="name of the block")
    parameters: Count = Field(description="parameters")
    state: Name = Field(description="kept, fresh or part kept")
    first_epoch: Count | None = Field(description="first epoch that trains it; null: frozen throughout")
    rate: Number = Field(description="learning rate")
    over_scratch: Number = Field(description="learning rate ÷ learning rate from scratch")
    weight_decay: Number = Field(description="weight decay")
    anchored: bool = Field(description="true: a penalty pulls it to the source's weights")
    drift: Figure = Field(description="‖θ − θs‖ ÷ ‖θs‖ over its kept parameters; null: none was kept")


class Frontier(Record):
    """The line between the start and the fit in weight space, and the point that was chosen on it."""

    alpha: Share = Field(description="chosen α of the saved model")
    retain: Share | None = Field(None, description="floor of the retention that was asked for; null: none")
    chosen_by: Name = Field(description="rows that α was chosen on: val, or cross-validation")
    fixed: bool = Field(False, description="true: the plan's fit.alpha sets α, and nothing was chosen")
    points: list[Point] = Field(max_length=1_000, description="points that were evaluated")
    seed: Whole | None = Field(None, description="seed whose points they are; null: over the folds")
    test_at_alpha_1: Estimates = Field({}, alias="test at alpha 1", description="test at α = 1")
    gain: Estimate = Field(alias="gain over alpha 1", description="gain of the chosen point over α = 1, on test")


class Forgotten(Record):
    """A source class that the fine-tuned backbone recognises less often."""

    name: Text = Field(alias="class", description="the source's class")
    rows: Count = Field(description="report rows of the class")
    before: Figure = Field(description="accuracy on them before")
    after: Figure = Field(description="accuracy on them after")


class SeedRetention(Record):
    """The source metric after a seed's fit."""

    after: Figure = Field(description="source metric after the fit")
    ratio: MaybeNumber = Field(description="retention; null: not defined")


class SourceRetention(Sparse):
    """Retention of the source task, measured on its report rows."""

    left_out = ("at alpha 1", "gain over alpha 1", "opened")

    kind: Literal["source data"] = Field("source data", description="measured on source data")
    metric: Name = Field(description="metric of the source task")
    before: Estimate = Field(description="metric of the source")
    after: Estimate = Field(description="metric after fine-tuning, with the source's own head")
    forgetting: Estimate = Field(description="what was lost, paired on the same rows; positive: worse")
    over_seeds: Estimate | None = Field(
        None, alias="forgetting over seeds", description="the same over all seeds; null for one seed"
    )
    chance: MaybeNumber = Field(None, description="metric of the best answer that ignores the input")
    ratio: MaybeNumber = Field(description="(after − chance) ÷ (before − chance); null: not defined")
    low: MaybeNumber = Field(None, description="lower bound of the ratio, one-sided, 95 %")
    claim: bool = Field(description="true: there are enough rows for a claim")
    claim_from: Count = Field(alias="claim from", description="rows from which a claim is made")
    seeds: list[SeedRetention] = Field([], max_length=MAX_ENTRIES, description="each seed's fit")
    most_forgotten: list[Forgotten] = Field(
        [], alias="most forgotten", description="classes by what was lost, the most first"
    )
    at_alpha_1: list[Figure] | None = Field(None, alias="at alpha 1", description="metric at α = 1, by seed")
    gain_over_alpha_1: Estimate | None = Field(
        None, alias="gain over alpha 1", description="gain of the chosen point over α = 1 on the source rows"
    )
    opened: Count | None = Field(None, description="times that the report rows were opened; 0: not counted")


class Agreement(Record):
    """Retention by proxy: the source's own head on the target's inputs, before and after."""

    kind: Literal["agreement on target inputs"] = Field(
        "agreement on target inputs", description="a proxy: no source data"
    )
    agreement: Estimate = Field(description="share of test rows whose source class stays the same")
    divergence: Estimate | None = Field(None, description="mean KL(before ‖ after) of the head's probabilities, nats")


class FeatureSimilarity(Record):
    """Retention by proxy of a source without a head of classes."""

    kind: Literal["features on target inputs"] = Field(
        "features on target inputs", description="a proxy: no source data"
    )
    cka: Figure = Field(description="linear CKA of the features of test rows; 1: equal up to rotation and scale")


Retention = Annotated[SourceRetention | Agreement | FeatureSimilarity, Field(discriminator="kind")]


# ---------------------------------------------------------------- calibration


class Bin(Record):
    """Test rows of similar confidence."""

    confidence: Share = Field(description="mean confidence")
    accuracy: Share = Field(description="accuracy")
    rows: Count = Field(description="rows")


class CalibrationFigures(Record):
    """The metrics of probabilities."""

    ece: Estimate = Field(description="expected calibration error, or the gain in it")
    log_loss: Estimate = Field(description="mean negative log-probability of the true class in nats, or the gain in it")


class Reliability(Record):
    """Accuracy by confidence on test, in bins."""

    before: list[Bin] = Field(max_length=MAX_ENTRIES, description="logits as they are")
    after: list[Bin] = Field(max_length=MAX_ENTRIES, description="logits divided by the temperature")


class IfCalibrated(Record):
    """The ECE that test would show if the probabilities were right: mean and middle 95 % of simulated labels."""

    before: Estimate = Field(description="with the probabilities as they are")
    after: Estimate = Field(description="with the probabilities at the temperature")


class Calibration(Sparse):
    """Test as it is, and with logits divided by the temperature that was fitted on held-out rows."""

    left_out = ("if calibrated",)

    temperature: Temperature
    fitted_on: Count = Field(description="rows that it was fitted on")
    fitted_by: Literal["val", "cross-validation"] = Field(
        "val", description="which rows these are: val, or train as cross-validation scored it"
    )
    before: CalibrationFigures = Field(description="logits as they are")
    after: CalibrationFigures = Field(description="logits divided by the temperature")
    gain: CalibrationFigures = Field(description="gain of the temperature, paired; positive is better")
    if_calibrated: IfCalibrated | None = Field(
        None, alias="if calibrated", description="ECE of a calibrated model on these rows; null: not computed"
    )
    reliability: Reliability = Field(description="accuracy by confidence")

    @property
    def harmful(self) -> bool:
        """Return whether the temperature made the log loss on test worse, beyond its interval."""
        return self.gain.log_loss.high < 0
