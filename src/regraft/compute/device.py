"""The device, its memory layout and its precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import UsageError
from .fsdp import is_sharded

if TYPE_CHECKING:
    from torch import nn

    from .arrays import Inputs


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """A device and why. Raises UsageError where the one asked for is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "auto: Apple GPU"
        return torch.device("cpu"), "auto: no CUDA device and no MPS"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f'device "{wanted}" cannot be used: {first}; cpu always can') from error
    return device, "as asked"


def to_device(inputs: Inputs, device: torch.device, layout: str) -> Inputs:
    """Inputs on a device; pictures [B, C, H, W] in the memory layout asked for."""
    soon = device.type == "cuda"  # what follows on the device waits for the copy, we do not
    if isinstance(inputs, dict):
        return {k: v.to(device, non_blocking=soon) for k, v in inputs.items()}
    moved = inputs.to(device, non_blocking=soon)
    if layout == "channels_last" and moved.ndim == 4:  # on the device, where it is sooner done
        return moved.to(memory_format=torch.channels_last)
    return moved


def move_model(model: nn.Module, device: torch.device, layout: str) -> nn.Module:
    """The model on a device, its convolutions' weights in the memory layout asked for: a layout rounds
    in its own way, so a model that is judged must lie as it did when it was fitted. One whose weights are
    divided stays as it is."""
    if is_sharded(model):
        return model
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if layout == "channels_last" else model


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Convolutions and matrix products in bfloat16 inside, or everything in float32."""
    lower = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16 if lower else None, enabled=lower)
