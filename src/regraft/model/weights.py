"""Copies of a model's weights, and their return into the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..compute.fsdp import full_tensor, load_full_state_dict

if TYPE_CHECKING:
    from torch import Tensor

    from .types import Target


def snapshot(target: Target) -> dict[str, Tensor]:
    """Copy the model's weights and buffers to the CPU, in full, by name."""
    return {n: full_tensor(t.detach()).cpu().clone() for n, t in target.model.state_dict().items()}


def restore(target: Target, state: Mapping[str, Tensor]) -> None:
    """Load a copy of weights and buffers into the model."""
    load_full_state_dict(target.model, state)
