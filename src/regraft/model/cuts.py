"""Forward passes that start at, or stop after, a block of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .types import run_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..compute.arrays import Inputs
    from .types import Target


class PenaltyForward(torch.nn.Module):
    """The target's model, with the outputs of its blocks for penalties."""

    def __init__(self, target: Target, cut: int, mapped: bool) -> None:
        super().__init__()
        self.model = target.model
        self.target, self.cut, self.mapped = target, cut, mapped

    def forward(self, inputs: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        backbone, maps = self.model.get_submodule("backbone"), dict[str, Any]()
        if self.mapped:
            maps = block_outputs(self.target, backbone, inputs)
            features = maps[self.target.blocks[-2].name]
        elif self.cut:
            features = run_upper(self.target, inputs, self.cut)
        else:
            features = backbone(inputs)
        return maps, features, self.model.get_submodule("head")(features)


class UpperBlocks(torch.nn.Module):
    """The blocks above a cut, as a module: the output of the first ``cut`` blocks → logits [B, C]."""

    def __init__(self, target: Target, cut: int) -> None:
        super().__init__()
        self.model = target.model
        self.target, self.cut = target, cut

    def forward(self, x: Any) -> Tensor:
        head = self.model.get_submodule("head")
        return head(run_upper(self.target, x, self.cut))  # type: ignore[no-any-return]


def run_upper(target: Target, x: Any, cut: int) -> Tensor:
    """Return features [B, D] from the output of the first ``cut`` blocks."""
    backbone = target.model.get_submodule("backbone")
    features: Tensor = run_blocks(target.blocks[cut:-1], backbone, x)
    return features


def block_outputs(target: Target, backbone: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Compute each backbone block's output, by name; the last one is the features."""
    maps: dict[str, Any] = {}
    x: Any = inputs
    for block in target.blocks[:-1]:
        x = maps[block.name] = run_blocks((block,), backbone, x)
    return maps
