"""The settings of one fit, and its specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..data.types import Augment

if TYPE_CHECKING:
    from ..freezing import Freezing
    from ..metrics import Metric
    from ..regularizers import Penalty
    from ..tasks import Task


@dataclass(frozen=True)
class Settings:
    """A plan's ``[fit]`` with every automatic choice made; rates by block, in the order of blocks."""

    epochs: int
    rates: Mapping[str, float]
    optimizer: str = "AdamW"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.1  # share of the steps
    accumulate: int = 1  # micro-batches a step
    clip_norm: float = 1.0  # largest norm of a step's gradient; 0 disables
    sharpness: float = 0.0  # radius ρ of sharpness-aware minimisation; 0 disables
    average: float = 0.0  # decay of the weights' moving average; 0 disables
    patience: int = 0  # epochs without a gain on val that end the fit; 0 disables
    penalties: bool = True  # add the plan's penalties; the scratch control is tried without them
    batch_norm: Literal["frozen", "train"] = "frozen"
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class FitSpec:
    """The objective of a fit, and the way to its minimum."""

    task: Task
    metric: Metric  # chooses the best epoch on val
    settings: Settings
    freezing: Freezing
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    seed: int = 0
