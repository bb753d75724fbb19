"""The settings of one fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.types import Augment


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
    accumulate: int = 1
    clip_norm: float = 1.0  # 0: off
    sharpness: float = 0.0  # radius ρ of sharpness-aware minimisation; 0: off
    average: float = 0.0  # decay of the weights' moving average; 0: off
    patience: int = 0  # epochs; 0: off
    penalties: bool = True  # those of the plan; the scratch control is tried without them
    batch_norm: Literal["frozen", "train"] = "frozen"
    augment: Augment = field(default_factory=Augment)
    layout: str = "contiguous"
    compile: bool = False  # the model of a step, by torch.compile
    precision: str = "float32"  # of a step's forward pass; what is judged is judged in float32
