"""DELTA without attention: keep the feature maps of the source's blocks, not its weights.

    R(θ) = λ · (1/B) Σ_b Σ_l Σ_j W_lj ‖FM_lj(x_b; θ) − FM_lj(x_b; θs)‖²  +  β/2 · Σ_fresh ‖θ‖²

l runs over blocks and j over the channels of a block's output: [B, C, H, W] has C maps of H · W
values, tokens [B, T, D] have D of T (padding left out), vectors [B, D] have D of 1. Li, Xiong, Wang,
Rao, Liu and Huan 2019, 1901.09229, eq. 4 and 5. There W is a softmax over channels of how much the
source's loss rises without each; here every W is 1/C, their "without attention" (section 4.4). A
clone of the source's backbone runs beside the model, on the same augmented view.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import PlanError
from ..types import Batch, Penalty, Regularizer, SourceRows, Target

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Delta(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = True

    strength: float = 0.01  # λ
    beta: float = 0.01  # β, on fresh weights
    blocks: tuple[str, ...] = ("*",)  # patterns of the blocks whose outputs are kept

    def __post_init__(self) -> None:
        if self.strength < 0 or self.beta < 0:
            raise ValueError("strength and beta take 0 or more")

    def prepare(self, target: Target, source_data: SourceRows | None) -> Penalty:
        import copy

        import torch

        cuts = target.blocks[:-1]  # the last is the head
        if any(b.run is None for b in cuts):
            raise PlanError(
                [f"regularizers.delta needs feature maps, and {target.source.name} cannot be cut "
                 f"between its blocks: remove it, or take l2_sp"]
            )  # fmt: skip
        for pattern in self.blocks:
            if not any(fnmatchcase(b.name, pattern) for b in cuts):
                names = ", ".join(b.name for b in cuts)
                raise PlanError(
                    [
                        f'regularizers.delta: pattern "{pattern}" matches no block; there are: {names}'
                    ]
                )
        wanted = [b.name for b in cuts if any(fnmatchcase(b.name, p) for p in self.blocks)]
        backbone = copy.deepcopy(target.source.backbone).eval()
        anchor = target.anchor

        def term(batch: Batch) -> Tensor:
            backbone.to(batch.logits.device)
            x: Any = batch.inputs
            apart = batch.logits.new_zeros(())
            for block in cuts:
                assert block.run is not None
                with torch.no_grad():
                    x = block.run(backbone, x)
                if block.name in wanted:
                    now, before = channels(batch.maps[block.name]), channels(x)  # [B, C, …]
                    apart = apart + (now - before).square().sum() / now.shape[1]
            fresh = [p for n, p in batch.params.items() if n not in anchor and p.ndim > 1]
            shrink = torch.stack([p.square().sum() for p in fresh]).sum() if fresh else 0.0
            return self.strength * apart / len(batch.ids) + self.beta / 2 * shrink

        return Penalty(term, per="batch", maps=True)


def channels(x: Any) -> Tensor:
    """A block's output as [B, C, …]; text blocks give {"hidden": [B, T, D], "attention_mask"}."""
    if isinstance(x, dict):
        hidden: Tensor = x["hidden"] * x["attention_mask"][..., None]
        return hidden.transpose(1, 2)
    maps: Tensor = x.transpose(1, 2) if x.ndim == 3 else x
    return maps
