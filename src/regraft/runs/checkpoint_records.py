"""The schemas of the records in a checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .records import Count, Name, Number, Record, Seconds, Share, Text, need


class Exact(BaseModel):
    """A record that becomes a dataclass: it has no other keys, and its figures may be infinite."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ProgressRecord(Exact):
    """A position in the training of an arm; see :class:`regraft.training.records.Progress`."""

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


class RetainedRecord(Exact):
    """Retention at a point of the frontier."""

    before: float
    after: float
    ratio: float | None
    low: float | None


class PointRecord(Exact):
    """A point of the frontier."""

    alpha: Share
    figures: dict[str, float]
    source: RetainedRecord | None


class ArmFit(Exact):
    """The fit of an arm."""

    best_epoch: Count
    epochs: Count
    steps: Count
    best: dict[str, float]
    start: dict[str, float]
    stopped: Text


class ArmRecord(Record):
    """The record of a finished arm, beside its tensors."""

    fit: ArmFit
    alpha: Share
    points: list[PointRecord]


class FoldRecord(Record):
    """The record of the fit of a fold, beside its tensors."""

    fit: ArmFit


class ProbeRecord(Record):
    """The record of the linear probe, beside its tensors."""

    strength: Number
    losses: list[Annotated[list[float], Field(min_length=2, max_length=2)]]  # λ and its loss
    chosen_by: Text
    rows: Count = 0
    of: Count = 0
    passes: Count = 0


class OpeningRecord(Record):
    """The record of the opening of test by a run that looks at its verdict seed after seed."""

    opened: Count  # times that these test rows were opened, this one included
    test_digest: Text  # of these rows


class AboutRun(Record):
    """The state of the whole run at a checkpoint."""

    history: Count = 0  # bytes of history.jsonl
    reuse: dict[str, Literal["live", "kept"]] = Field({})  # which features were cached, by arm
    seconds: dict[str, Seconds] = Field({})  # of each stage so far


class CheckpointRecord(Record):
    """The record of a checkpoint: of a finished part of the run, or of an arm in training."""

    count: Count  # number of the checkpoint
    about: AboutRun = AboutRun()
    part: Name | None = None  # name of the finished part
    arm: Name | None = None  # name of the arm in training
    at: ProgressRecord | None = None  # where the arm is

    @model_validator(mode="after")
    def _is_of_a_part_or_an_arm(self) -> CheckpointRecord:
        of_arm = self.arm is not None and self.at is not None
        need(self.part is not None or of_arm, "neither a part nor an arm and where it was")
        return self
