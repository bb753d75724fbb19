"""The schemas of a checkpoint's record."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .records import Count, Name, Number, Record, Seconds, Share, Text, need


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
    reuse: dict[str, Literal["live", "kept"]] = Field({})
    seconds: dict[str, Seconds] = Field({})


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
