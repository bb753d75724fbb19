"""transformers models as backbones: inputs → features [B, D], with the poolings that give one vector a row.

Poolings take tokens or feature maps: [B, T, D] or [B, D, H, W] → [B, D]. The formulas are those of
sentence-transformers; several modes are concatenated in their order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SourceError
from ..model.types import Block
from . import _blocks

if TYPE_CHECKING:
    from ..compute.arrays import Inputs

MODES = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last")

OWN = ("text_embeds", "image_embeds", "pooler_output")  # outputs that hold a model's own vector, the best first


class Encoder(nn.Module):
    """A transformers model without its classifier, or a plain encoder with pooling.

    ``pooling`` is "head" for the classifier's input, "own" for the vector that the model computes itself, or some of
    MODES joined by "+". ``after`` describes layers that follow, as in a recipe. ``left`` is true for a tokenizer that
    pads on the left; rows are then moved to the left first.
    """

    def __init__(self, net: nn.Module, pooling: str, after: Sequence[dict[str, Any]] = (), left: bool = False) -> None:
        super().__init__()
        self.net = net
        self.pooling = pooling
        self.left = left
        self.length = fixed_length(net)
        self.dropped = unused_inputs(net)
        if after:
            self.after = layers_after(list(after))

    def forward(self, inputs: Inputs) -> Tensor:
        if not isinstance(inputs, dict):
            return self.pool(self.hidden(self.net(pixel_values=inputs)), None)
        if self.left:
            inputs = align_left(inputs)
        if self.length:
            inputs = fill_to_length(inputs, *self.length)
        out = self.net(**{k: v for k, v in inputs.items() if k not in self.dropped})
        return self.pool(self.hidden(out), inputs.get("attention_mask"))

    def hidden(self, out: Any) -> Tensor:
        """Return the tensor of the model's output that pooling reads."""
        tensor: Tensor | None = out.logits if self.pooling == "head" else None
        tensor = own_vector(out) if self.pooling == "own" else tensor
        return out.last_hidden_state if tensor is None else tensor

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return [B, D] from [B, D], [B, T, D] or [B, D, H, W]. mask is [B, T]."""
        modes = "cls" if self.pooling in ("head", "own") else self.pooling
        x = pool(x, mask, modes)
        return self.after(x) if hasattr(self, "after") else x


def unused_inputs(net: nn.Module) -> frozenset[str]:
    """Return the names that a tokenizer may give and the model does not take."""
    named = {name for module in (net, base_of(net)) for name in inspect.signature(module.forward).parameters}
    return frozenset({"token_type_ids", "attention_mask"} - named)


def fixed_length(net: Any) -> tuple[int, int] | None:
    """Return (tokens, padding id) of a model that reads its answer at a fixed last place, else None.

    Such a model needs rows of exactly that many tokens.
    """
    config = net.config
    if config.model_type not in ("siglip_text_model", "siglip2_text_model"):
        return None
    return config.max_position_embeddings, config.pad_token_id


def base_of(net: Any) -> Any:
    """Return the model without its classifier."""
    return getattr(net, "base_model", net)


def call_model(net: Any, inputs: Inputs, reference: str) -> Any:
    """Return the model's output.

    Raises SourceError where the model does not take such inputs, ValueError or RuntimeError where their size or
    number does not suit it.
    """
    try:
        if not isinstance(inputs, dict):
            return net(pixel_values=inputs)
        unknown = unused_inputs(net)
        return net(**{k: v for k, v in inputs.items() if k not in unknown})
    except (ValueError, RuntimeError):
        raise
    except Exception as error:  # models raise errors of many kinds
        raise input_error(net, inputs, error, reference) from error


def input_error(net: nn.Module, inputs: Inputs, error: Exception, reference: str) -> SourceError:
    """Return the error for a model that fails on plain texts or pictures."""
    what = "texts" if isinstance(inputs, dict) else "pictures"
    return SourceError(
        f"{reference}: refused, {type(net).__name__} does not take {what} alone "
        f"({type(error).__name__}: {' '.join(str(error).split()):.200})"
    )


def tokens_to_head(net: Any, inputs: Inputs) -> bool:
    """Return whether a model whose classifier is an identity gives it all tokens."""
    with torch.no_grad():
        return bool(call_model(net, inputs, type(net).__name__).logits.ndim == 3)


def sees_padding(backbone: nn.Module, inputs: Inputs) -> bool:
    """Return whether a text has other features alone than in a batch that pads it."""
    if not isinstance(inputs, dict):
        return False
    lengths = inputs["attention_mask"].sum(1)
    row, length = int(lengths.argmin()), int(lengths.min())
    alone = {k: v[row : row + 1, :length] for k, v in inputs.items()}
    with torch.no_grad():
        pair = backbone(inputs)[row : row + 1], backbone(alone)
    return not torch.allclose(*pair, rtol=1e-3, atol=1e-4)


def choose_pooling(net: Any, inputs: Inputs, wanted: str, reference: str) -> str:
    """Return the pooling to use. The model's output decides for "auto" and "own".

    Raises SourceError for a pooling that does not exist, or that the model cannot have.
    """
    known = ("auto", "own", *MODES)
    if not all(mode in known for mode in wanted.split("+")) or ("+" in wanted and "own" in wanted):
        raise SourceError(f'{reference}: there is no pooling "{wanted:.60}"')
    with torch.no_grad():
        out = call_model(net, inputs, reference)
    vector, hidden = own_vector(out), getattr(out, "last_hidden_state", None)
    if hidden is None and vector is None:
        raise SourceError(f"{reference}: refused, {type(net).__name__} gives {', '.join(out)}, no features")
    if wanted == "auto":
        return "own" if hidden is None else "mean"
    if wanted == "own":
        usual = "cls" if isinstance(inputs, dict) else "mean"
        return "own" if vector is not None else usual
    if hidden is None:
        raise SourceError(
            f"{reference}: {type(net).__name__} gives one vector a row, so pooling {wanted} has no "
            "tokens: leave pooling out"
        )
    return wanted


class TokenHead(nn.Module):
    """A classification head that reads the first token of [B, T, D], wrapped to take that token [B, D]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.inner(features.unsqueeze(1))
        return logits


def layers_of(net: nn.Module) -> str | None:
    """Return the dotted name of the list of layers: of the lists with the most parameters, the outermost."""
    lists = [
        (sum(p.numel() for p in m.parameters()), -n.count("."), n)
        for n, m in net.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) > 0
    ]
    return max(lists)[2] if lists else None


def group(backbone: Encoder) -> list[tuple[str, list[str]]]:
    """Return tensors grouped as embeddings, layers and the rest. Names lack the wrappers' prefixes.

    What holds positions ("embed", "relative") is used by every layer: it goes with the embeddings.
    """
    names = _blocks.tensor_names(backbone)
    layers = layers_of(backbone)
    if layers is None:
        return [("encoder", names)]
    count = len(backbone.get_submodule(layers))  # type: ignore[arg-type]
    each = [[n for n in names if n.startswith(f"{layers}.{i}.")] for i in range(count)]
    inside = {n for g in each for n in g}
    first = names.index(each[0][0]) if each[0] else 0
    early = [n for i, n in enumerate(names) if n not in inside and ((i < first) or "embed" in n or "relative" in n)]
    late = [n for n in names if n not in inside and n not in set(early)]
    prefix = f"{getattr(backbone.net, 'base_model_prefix', '')}."
    stem = layers.removeprefix("net.").removeprefix(prefix)
    groups = [("embeddings", early), *((f"{stem}.{i}", g) for i, g in enumerate(each))]
    path = _blocks.common_path(late).removeprefix("net").lstrip(".").removeprefix(prefix)
    groups.append((path or "last", late))
    return [(title, tensors) for title, tensors in groups if tensors]


def blocks(backbone: Encoder) -> tuple[Block, ...]:
    """Return blocks, with runs for BERT, RoBERTa and ViT and without for other models.

    Between text blocks x is {"hidden": [B, T, D], "attention_mask": [B, T]}.
    """
    groups = group(backbone)
    runs: list[_blocks.Run | None] = [None] * len(groups)
    layers = layers_of(backbone)
    base = base_of(backbone.net)
    kind = type(base).__name__
    count = len(backbone.get_submodule(layers)) if layers else 0  # type: ignore[arg-type]
    embed: _blocks.Run
    finish: _blocks.Run
    layer: Callable[[int, nn.Module, Any], Any]
    if backbone.pooling == "own":
        return _blocks.partition(backbone, groups, runs)
    if kind in ("BertModel", "RobertaModel") and len(groups) in (count + 1, count + 2):
        embed, finish, layer = embed_text, finish_text, layer_text
    elif kind == "ViTModel" and len(groups) == count + 2:
        embed, finish, layer = embed_image, finish_image, layer_image
    else:
        return _blocks.partition(backbone, groups, runs)
    each: list[_blocks.Run] = [partial(layer, i) for i in range(count)]
    after = [finish] * (len(groups) - count - 1)
    if not after:  # nothing with tensors follows the layers: pooling belongs to the last one
        each[-1] = partial(chain_runs, each[-1], finish)
    runs = [embed, *each, *after]
    return _blocks.partition(backbone, groups, runs)


def chain_runs(first: _blocks.Run, second: _blocks.Run, backbone: nn.Module, x: Any) -> Any:
    """Run one block, then another."""
    return second(backbone, first(backbone, x))


def after_base(backbone: Any, hidden: Tensor, pooled: Tensor | None, mask: Tensor | None) -> Tensor:
    """Return what the classifier would read, whose place holds an identity, or else the pooled features."""
    if backbone.pooling != "head":
        features: Tensor = backbone.pool(hidden, mask)
        return features
    x = hidden if pooled is None else pooled
    dropout = getattr(backbone.net, "dropout", None)
    return backbone.pool(dropout(x) if dropout is not None else x, mask)  # type: ignore[no-any-return]


def embed_text(backbone: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run the embeddings of a text model."""
    if backbone.left:
        x = align_left(x)
    hidden = base_of(backbone.net).embeddings(input_ids=x["input_ids"], token_type_ids=x.get("token_type_ids"))
    mask = x.get("attention_mask", torch.ones_like(x["input_ids"]))
    return {"hidden": hidden, "attention_mask": mask}


def layer_text(index: int, backbone: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run one layer of a text model."""
    from transformers.masking_utils import create_bidirectional_mask

    base, hidden = base_of(backbone.net), x["hidden"]
    mask = create_bidirectional_mask(config=base.config, inputs_embeds=hidden, attention_mask=x["attention_mask"])
    return {**x, "hidden": base.encoder.layer[index](hidden, mask)}


def finish_text(backbone: Any, x: dict[str, Tensor]) -> Tensor:
    """Run the pooler, where there is one, and the pooling."""
    pooler = base_of(backbone.net).pooler
    pooled = pooler(x["hidden"]) if pooler is not None else None
    return after_base(backbone, x["hidden"], pooled, x["attention_mask"])


def embed_image(backbone: Any, x: Tensor) -> Tensor:
    """Run the embeddings of a ViT."""
    hidden: Tensor = base_of(backbone.net).embeddings(x)
    return hidden


def layer_image(index: int, backbone: Any, x: Tensor) -> Tensor:
    """Run one layer of a ViT."""
    hidden: Tensor = base_of(backbone.net).layers[index](x, None)
    return hidden


def finish_image(backbone: Any, x: Tensor) -> Tensor:
    """Run the last norm and the pooling."""
    hidden = base_of(backbone.net).layernorm(x)
    return after_base(backbone, hidden, None, None)


# ---------------------------------------------------------------- poolings


def own_vector(out: Any) -> Tensor | None:
    """Return the vector that a model computes for each row itself, or None where there is none."""
    vectors: list[Tensor | None] = [getattr(out, name, None) for name in OWN]
    return next((v.flatten(1) for v in vectors if v is not None), None)


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
    if mode == "weightedmean":  # the first token counts once, the second twice
        weight = weight * weight.cumsum(1)
    if mode in ("mean", "mean_sqrt_len", "weightedmean"):
        total = weight.sum(1).clamp(min=1e-9)
        return (x * weight).sum(1) / (total.sqrt() if mode == "mean_sqrt_len" else total)
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
