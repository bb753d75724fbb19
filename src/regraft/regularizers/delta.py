"""DELTA: a penalty that keeps the feature maps of the source's blocks, not its weights.

    R(θ) = λ · (1/B) Σ_b Σ_l Σ_j W_lj ‖FM_lj(x_b; θ) − FM_lj(x_b; θs)‖²  +  β/2 · Σ_fresh ‖θ‖²

l runs over blocks and j over the channels of a block's output: [B, C, H, W] has C maps of H · W
values, tokens [B, T, D] have D of T (padding left out), vectors [B, D] have D of 1. Li, Xiong, Wang,
Rao, Liu and Huan 2019, 1901.09229, eq. 4 and 5. A clone of the source's backbone runs beside the
model, on the same augmented view.

W is 1/C, their "without attention" (section 4.4). With ``attention`` it is their eq. 6: the rise of the
target's loss when one channel of the source is set to 0:

    W_l = softmax_j( L(θs without channel j of l) − L(θs) )

L is the loss of the linear probe's head on θs, from which the fit starts. The paper weighs every row by
itself; here L is the mean over ``examples`` training rows, so W is one vector a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..compute.arrays import map_inputs
from ..errors import PlanError
from ..model.types import Block, Target, match_blocks, run_blocks
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Delta(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = True

    strength: float = 0.01  # λ
    beta: float = 0.01  # β, on fresh weights
    blocks: tuple[str, ...] = ("*",)  # patterns of the blocks whose outputs are kept
    attention: bool = False  # weigh each channel by the rise of the target's loss without it
    examples: int = 32  # training rows that ``attention`` is measured on

    def __post_init__(self) -> None:
        if self.strength < 0 or self.beta < 0:
            raise ValueError("strength and beta take 0 or more")
        if self.examples < 1:
            raise ValueError("examples takes 1 or more")

    def needs_fit(self) -> Mapping[str, str]:
        return {"start": "probe"} if self.attention else {}

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import copy

        import torch

        cuts = target.blocks[:-1]  # the last is the head
        if any(b.run is None for b in cuts):
            raise PlanError(
                f"regularizers.delta needs feature maps, and {target.source.name} cannot be cut "
                f"between its blocks: remove it, or take l2_sp"
            )
        names = [b.name for b in cuts]
        matched = {n for pattern in self.blocks for n in match_blocks(pattern, names)}
        wanted = [n for n in names if n in matched]
        backbone = copy.deepcopy(target.source.backbone).eval()
        head = copy.deepcopy(target.model.get_submodule("head")).eval()
        anchor = target.anchor
        weights: dict[str, Tensor] = {}

        def weigh(device: torch.device) -> None:
            values = torch.cat([p.detach().flatten().cpu() for p in head.parameters()])
            key = (self, values.numpy().tobytes())  # folds have heads of their own
            found = train.once(key, lambda: attention(backbone, head, cuts, wanted, train, self.examples))
            weights.update((name, w.to(device)) for name, w in found.items())

        def term(batch: Batch) -> Tensor:
            backbone.to(batch.logits.device)
            if self.attention and not weights:
                weigh(batch.logits.device)
            x: Any = batch.inputs
            apart = batch.logits.new_zeros(())
            for block in cuts:
                with torch.no_grad():
                    x = run_blocks((block,), backbone, x)
                if block.name in wanted:
                    # [B, C, …]; squares of bfloat16 would lose what is small
                    now, before = channels(batch.maps[block.name]).float(), channels(x).float()
                    by_channel = (now - before).square().transpose(0, 1).flatten(1).sum(1)  # [C]
                    w = weights.get(block.name, 1 / len(by_channel))
                    apart = apart + (by_channel * w).sum()
            fresh = [p for n, p in batch.params.items() if n not in anchor and p.ndim > 1]
            shrink = torch.stack([p.square().sum() for p in fresh]).sum() if fresh else 0.0
            return self.strength * apart / len(batch.logits) + self.beta / 2 * shrink

        return Penalty(term, per="batch", maps=True)


def attention(
    backbone: nn.Module, head: nn.Module, cuts: Sequence[Block], wanted: Sequence[str], train: TrainRows, examples: int
) -> dict[str, Tensor]:
    """Return W of every wanted block by name: [C], with sum 1.

    For every row and channel, the blocks above run once.
    """
    import torch

    device = next(backbone.parameters()).device
    head.to(device)
    rises: dict[str, Tensor] = {}
    rows = 0
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for ids, inputs, labels in train.sample(examples):
            x: Any = repeated(inputs, 1, device)
            targets = labels.to(device)
            base = train.task.loss(head(run_blocks(cuts, backbone, x)), targets).sum()
            together = max(1, MAX_ROWS // len(ids))  # channels
            for place, block in enumerate(cuts):
                x = run_blocks((block,), backbone, x)
                if block.name not in wanted:
                    continue
                losses = []
                for silent in torch.split(torch.arange(channels(x).shape[1]), together):
                    answers = head(run_blocks(cuts[place + 1 :], backbone, without(x, silent)))
                    every = train.task.loss(answers, targets.repeat(len(silent), *ones(targets)))
                    losses.append(every.view(len(silent), -1).sum(1))
                rise = torch.cat(losses).double() - base
                rises[block.name] = rises.get(block.name, torch.zeros_like(rise)) + rise
            rows += len(ids)
    return {name: (rise / rows).softmax(0).float() for name, rise in rises.items()}


MAX_ROWS = 256  # in one forward pass, about


def without(x: Any, silent: Tensor) -> Any:
    """Return a block's output [B, …] once for each of K channels, with that channel at 0: [K·B, …]."""
    many = repeated(x, len(silent), hidden_of(x).device)
    hidden = hidden_of(many)
    hidden = hidden.transpose(1, -1) if hidden.ndim == 3 else hidden  # a view, channels second
    each = len(hidden) // len(silent)
    for k, channel in enumerate(silent.tolist()):
        hidden[k * each : (k + 1) * each, channel] = 0
    return many


def repeated(x: Any, times: int, device: torch.device) -> Any:
    """Return ``times`` copies of [B, …], or of a dictionary of such tensors: [times · B, …]."""
    return map_inputs(lambda tensor: tensor.to(device).repeat(times, *ones(tensor)), x)


def hidden_of(x: Any) -> Tensor:
    """Return a block's output as a tensor, without a text's attention mask."""
    hidden: Tensor = x["hidden"] if isinstance(x, dict) else x
    return hidden


def ones(x: Tensor) -> list[int]:
    return [1] * (x.ndim - 1)


def channels(x: Any) -> Tensor:
    """Return a block's output as [B, C, …]; text blocks give {"hidden": [B, T, D], "attention_mask"}."""
    if isinstance(x, dict):
        hidden: Tensor = x["hidden"] * x["attention_mask"][..., None]
        return hidden.transpose(1, 2)
    maps: Tensor = x.transpose(1, 2) if x.ndim == 3 else x
    return maps
