"""One pass of a frozen module over batches: features from a backbone, logits from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import processes
from .freeze import evaluating
from .progress import stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .batches import Batches
    from .types import Inputs


@dataclass(frozen=True)
class Outputs:
    """What a module gave for every row of a split, in the split's order, on the CPU."""

    ids: tuple[str, ...]
    values: Tensor  # [N, D] or [N, C], float32
    targets: Tensor  # [N] or [N, C], as the task encoded them

    def take(self, rows: Sequence[int]) -> Outputs:
        """Return these rows in this order; of all rows as they stand, no copy."""
        if len(rows) == len(self.ids) and all(i == row for i, row in enumerate(rows)):
            return self
        index = torch.as_tensor(rows, dtype=torch.long)
        return Outputs(tuple(self.ids[i] for i in rows), self.values[index], self.targets[index])


def on(inputs: Inputs, device: torch.device, layout: str) -> Inputs:
    """Inputs on a device; pictures [B, C, H, W] in the memory layout asked for."""
    soon = device.type == "cuda"  # what follows on the device waits for the copy, we do not
    if isinstance(inputs, dict):
        return {k: v.to(device, non_blocking=soon) for k, v in inputs.items()}
    moved = inputs.to(device, non_blocking=soon)
    if layout == "channels_last" and moved.ndim == 4:  # on the device, where it is sooner done
        return moved.to(memory_format=torch.channels_last)
    return moved


def placed(model: nn.Module, device: torch.device, layout: str) -> nn.Module:
    """The model on a device, its convolutions' weights in the memory layout asked for: a layout rounds
    in its own way, so a model that is judged must lie as it did when it was fitted. One whose weights are
    divided stays as it is."""
    if divided(model):
        return model
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if layout == "channels_last" else model


def divided(module: nn.Module) -> bool:
    return any(processes.divided(p) for p in module.parameters())


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Convolutions and matrix products in bfloat16 inside, or everything in float32."""
    lower = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16 if lower else None, enabled=lower)


def outputs(
    module: nn.Module,
    batches: Batches,
    device: torch.device,
    layout: str = "contiguous",
    precision: str = "float32",
) -> Outputs:
    """Every row's output, the module in eval mode and without gradient; modes are put back.

    Raises RuntimeError where the processes together did not give each row once.
    """
    place = {e.id: i for i, e in enumerate(batches.examples)}  # texts come by length
    left = set(place)  # rows without an output
    values: Tensor | None = None
    targets: Tensor | None = None

    def compute(
        ids: tuple[str, ...], inputs: Inputs, labels: Tensor
    ) -> tuple[tuple[str, ...], Tensor, Tensor]:
        with autocast(device, precision):
            return ids, module(on(inputs, device, layout)).float().cpu(), labels

    seen = stage("computing outputs", len(batches))
    # what inference mode fetches of divided weights could not be used in training again
    quiet = torch.no_grad() if divided(module) else torch.inference_mode()
    with evaluating(module), quiet:
        for names, given, labels in processes.in_turn(batches, compute):
            if not left.issuperset(names):
                raise RuntimeError(f"outputs of rows that are not among {len(batches)}, or twice")
            left.difference_update(names)
            rows = torch.tensor([place[name] for name in names], dtype=torch.long)
            with torch.inference_mode(False):  # made inside it they could not take part in autograd
                if values is None or targets is None:
                    values = given.new_empty(len(batches), *given.shape[1:])
                    targets = labels.new_empty(len(batches), *labels.shape[1:])
            values[rows], targets[rows] = given, labels
            seen.advance(len(names))
    if values is None or targets is None or left:
        raise RuntimeError(f"{len(batches) - len(left)} outputs for {len(batches)} rows")
    return Outputs(tuple(e.id for e in batches.examples), values, targets)
