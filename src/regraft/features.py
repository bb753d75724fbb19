"""One pass of a frozen module over batches: features from a backbone, logits from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .freeze import evaluating

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
        index = torch.as_tensor(rows, dtype=torch.long)
        return Outputs(tuple(self.ids[i] for i in rows), self.values[index], self.targets[index])


def on(inputs: Inputs, device: torch.device, layout: str) -> Inputs:
    """Inputs on a device; pictures [B, C, H, W] in the memory layout asked for."""
    if isinstance(inputs, dict):
        return {k: v.to(device) for k, v in inputs.items()}
    if layout == "channels_last" and inputs.ndim == 4:
        return inputs.to(device, memory_format=torch.channels_last)
    return inputs.to(device)


def outputs(
    module: nn.Module,
    batches: Batches,
    device: torch.device,
    layout: str = "contiguous",
) -> Outputs:
    """Every row's output, the module in eval mode and without gradient; modes are put back."""
    ids: list[str] = []
    values: list[Tensor] = []
    targets: list[Tensor] = []
    with evaluating(module), torch.inference_mode():
        for names, inputs, labels in batches:
            ids += names
            values.append(module(on(inputs, device, layout)).float().cpu())
            targets.append(labels)
    # clone: a tensor made under inference_mode could not take part in autograd later
    found = Outputs(tuple(ids), torch.cat(values).clone(), torch.cat(targets).clone())
    place = {name: i for i, name in enumerate(ids)}  # texts come by length
    return found.take([place[e.id] for e in batches.examples])
