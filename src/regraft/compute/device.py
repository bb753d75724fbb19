"""The device that computes, its memory layout, precision and threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import UsageError
from .arrays import map_inputs
from .fsdp import has_shards

if TYPE_CHECKING:
    from torch import nn

    from .arrays import Inputs


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Compute:
    """A device with its memory layout, its precision and its threads."""

    device: torch.device = CPU
    layout: str = "contiguous"  # memory layout of images and convolution weights; or "channels_last"
    precision: str = "float32"  # of a training step's forward pass; evaluation always uses float32
    compile: bool = False  # compile the model of a training step with torch.compile
    threads: int = 0  # of torch on the CPU; 0 leaves torch's own choice

    def use_threads(self) -> None:
        """Set torch's number of threads in this process."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def to_device(self, inputs: Inputs) -> Inputs:
        """Move inputs to the device; images [B, C, H, W] take the memory layout there."""
        asynchronous = self.device.type == "cuda"  # later work on the device waits for the copy by itself
        moved: Inputs = map_inputs(lambda x: x.to(self.device, non_blocking=asynchronous), inputs)
        if self.layout == "channels_last" and isinstance(moved, torch.Tensor) and moved.ndim == 4:
            return moved.to(memory_format=torch.channels_last)  # after the copy: the device is faster at it
        return moved

    def move_model(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and memory layout; a sharded model stays where it is.

        The layout changes rounding, so evaluate with the layout used for training.
        """
        if has_shards(model):
            return model
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.layout == "channels_last" else model

    def autocast(self, precision: str | None = None) -> torch.autocast:
        """Compute convolutions and matrix products in bfloat16 inside the block, if the precision says so.

        ``None`` is the precision of training steps.
        """
        lower = (precision or self.precision) == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if lower else None, enabled=lower)


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """Return a device and the reason. Raises UsageError if this machine lacks the wanted device."""
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
