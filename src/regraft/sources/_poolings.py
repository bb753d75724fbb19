"""Poolings of tokens or feature maps: [B, T, D] or [B, D, H, W] → [B, D].

The formulas are those of sentence-transformers; several modes are concatenated in their order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MODES = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last")

OWN = ("text_embeds", "image_embeds", "pooler_output")  # outputs that hold a model's own vector, the best first


def own_vector(out: Any) -> Tensor | None:
    """Return the vector that a model computes for each row itself, or None where there is none."""
    for name in OWN:
        vector: Tensor | None = getattr(out, name, None)
        if vector is not None:
            return vector.flatten(1)
    return None


def pool(x: Tensor, mask: Tensor | None, modes: str) -> Tensor:
    """Return [B, D × number of modes]. ``modes`` is "mean" or "cls+mean", for example; mask is [B, T]."""
    if x.ndim == 4:  # feature maps have no tokens, so every mode is their mean
        return x.mean((2, 3))
    if x.ndim == 2:
        return x
    if mask is None or mask.shape[1] != x.shape[1]:
        mask = torch.ones(x.shape[:2], dtype=torch.int64, device=x.device)
    each = [pool_one(x, mask, mode) for mode in modes.split("+")]
    return torch.cat(each, 1) if len(each) > 1 else each[0]


def pool_one(x: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Return [B, D] from [B, T, D] by one mode."""
    weight = mask.unsqueeze(-1).to(x.dtype)  # [B, T, 1]
    if mode == "mean":
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    if mode == "mean_sqrt_len":
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9).sqrt()
    if mode == "weightedmean":  # the first token counts once, the second twice
        weight = weight * weight.cumsum(1)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    if mode == "max":
        return x.masked_fill(weight == 0, float("-inf")).max(1).values
    if mode == "last":
        places = torch.arange(x.shape[1], device=x.device)
        index = (mask.to(places.dtype) * places).argmax(1)  # [B]
        return x.gather(1, index.view(-1, 1, 1).expand(-1, 1, x.shape[2])).squeeze(1)
    return x[:, 0]


def align_left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return rows [B, T] that begin with their first token, whichever side they were padded on.

    Positions are counted from the left, so a row with padding there would depend on its batch.
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        return inputs
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device)
    shift = (mask.cumsum(1) == 0).sum(1, keepdim=True)  # [B, 1], places before the first token
    order = places + shift
    order = torch.where(order < length, order, order - length)  # avoid %, because ONNX cannot export it here
    return {k: v.gather(1, order) if v.shape == mask.shape else v for k, v in inputs.items()}


def fill_to_length(inputs: dict[str, Tensor], length: int, pad: int) -> dict[str, Tensor]:
    """Return rows of exactly ``length`` tokens. Padding is read as text, as in the model's training."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    ids = ids if mask is None else ids.masked_fill(mask == 0, pad)
    return {"input_ids": nn.functional.pad(ids, (0, length - ids.shape[1]), value=pad)}


class Dense(nn.Module):
    """A linear layer after pooling, as in sentence-transformers, whose tensors keep its names."""

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.adds = residual
        if residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.linear(x))
        if not self.adds:
            return y
        return y + (self.residual(x) if hasattr(self, "residual") else x)


class UnitLength(nn.Module):
    """A layer that divides vectors by their Euclidean length."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    c.__name__: c
    for c in (
        nn.Identity,
        nn.Tanh,
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.ELU,
        nn.LeakyReLU,
        nn.ReLU6,
        nn.Softplus,
        nn.SELU,
        nn.Mish,
        nn.Hardswish,
    )
}


def layers_after(steps: list[dict[str, Any]]) -> nn.Sequential:
    """Return the layers that follow pooling, from a recipe's plain values."""
    return nn.Sequential(*(Dense(**step) if step else UnitLength() for step in steps))
