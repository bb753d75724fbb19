"""transformers models as backbones: inputs → features [B, D]."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SourceError
from . import _blocks, _poolings

if TYPE_CHECKING:
    from ..compute.arrays import Inputs
    from ..model.types import Block


class Encoder(nn.Module):
    """A transformers model without its classifier, or a plain encoder with pooling.

    ``pooling`` is "head" for the classifier's input, "own" for the vector that the model computes itself, or modes of
    _poolings. ``after`` describes layers that follow, as in a recipe. ``left`` is true for a tokenizer that pads on
    the left; rows are then moved to the left first.
    """

    def __init__(self, net: nn.Module, pooling: str, after: Sequence[dict[str, Any]] = (), left: bool = False) -> None:
        super().__init__()
        self.net = net
        self.pooling = pooling
        self.left = left
        self.length = fixed_length(net)
        self.dropped = unused_inputs(net)
        if after:
            self.after = _poolings.layers_after(list(after))

    def forward(self, inputs: Inputs) -> Tensor:
        if not isinstance(inputs, dict):
            return self.pool(self.hidden(self.net(pixel_values=inputs)), None)
        if self.left:
            inputs = _poolings.align_left(inputs)
        if self.length:
            inputs = _poolings.fill_to_length(inputs, *self.length)
        out = self.net(**{k: v for k, v in inputs.items() if k not in self.dropped})
        return self.pool(self.hidden(out), inputs.get("attention_mask"))

    def hidden(self, out: Any) -> Tensor:
        """Return the tensor of the model's output that pooling reads."""
        tensor: Tensor | None = out.logits if self.pooling == "head" else None
        tensor = _poolings.own_vector(out) if self.pooling == "own" else tensor
        return out.last_hidden_state if tensor is None else tensor

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return [B, D] from [B, D], [B, T, D] or [B, D, H, W]. mask is [B, T]."""
        modes = "cls" if self.pooling in ("head", "own") else self.pooling
        x = _poolings.pool(x, mask, modes)
        return self.after(x) if hasattr(self, "after") else x


def unused_inputs(net: nn.Module) -> frozenset[str]:
    """Return the names that a tokenizer may give and the model does not take."""
    named: set[str] = set()
    for module in (net, base_of_net(net)):
        named |= inspect.signature(module.forward).parameters.keys()
    return frozenset({"token_type_ids", "attention_mask"} - named)


def fixed_length(net: Any) -> tuple[int, int] | None:
    """Return (tokens, padding id) of a model that reads its answer at a fixed last place, else None.

    Such a model needs rows of exactly that many tokens.
    """
    config = net.config
    if config.model_type not in ("siglip_text_model", "siglip2_text_model"):
        return None
    return config.max_position_embeddings, config.pad_token_id


def base_of_net(net: Any) -> Any:
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
    known = ("auto", "own", *_poolings.MODES)
    if not all(mode in known for mode in wanted.split("+")) or ("+" in wanted and "own" in wanted):
        raise SourceError(f'{reference}: there is no pooling "{wanted:.60}"')
    with torch.no_grad():
        out = call_model(net, inputs, reference)
    vector, hidden = _poolings.own_vector(out), getattr(out, "last_hidden_state", None)
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
    base = base_of(backbone)
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


def base_of(backbone: Any) -> Any:
    """Return the model inside the backbone, without its classifier."""
    return base_of_net(backbone.net)


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
        x = _poolings.align_left(x)
    hidden = base_of(backbone).embeddings(input_ids=x["input_ids"], token_type_ids=x.get("token_type_ids"))
    mask = x.get("attention_mask", torch.ones_like(x["input_ids"]))
    return {"hidden": hidden, "attention_mask": mask}


def layer_text(index: int, backbone: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run one layer of a text model."""
    from transformers.masking_utils import create_bidirectional_mask

    base, hidden = base_of(backbone), x["hidden"]
    mask = create_bidirectional_mask(config=base.config, inputs_embeds=hidden, attention_mask=x["attention_mask"])
    return {**x, "hidden": base.encoder.layer[index](hidden, mask)}


def finish_text(backbone: Any, x: dict[str, Tensor]) -> Tensor:
    """Run the pooler, where there is one, and the pooling."""
    pooler = base_of(backbone).pooler
    pooled = pooler(x["hidden"]) if pooler is not None else None
    return after_base(backbone, x["hidden"], pooled, x["attention_mask"])


def embed_image(backbone: Any, x: Tensor) -> Tensor:
    """Run the embeddings of a ViT."""
    hidden: Tensor = base_of(backbone).embeddings(x)
    return hidden


def layer_image(index: int, backbone: Any, x: Tensor) -> Tensor:
    """Run one layer of a ViT."""
    hidden: Tensor = base_of(backbone).layers[index](x, None)
    return hidden


def finish_image(backbone: Any, x: Tensor) -> Tensor:
    """Run the last norm and the pooling."""
    hidden = base_of(backbone).layernorm(x)
    return after_base(backbone, hidden, None, None)
