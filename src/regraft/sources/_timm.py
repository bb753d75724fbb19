"""Blocks of a timm model, its classifier, its class names and its pictures.

A classifier is one layer, a 1×1 convolution, or several heads at once. Several heads give one output, as in distilled
models: Σ cᵢ headᵢ(xᵢ). Where all heads read the same x, the features are x. Otherwise a slot of the features replaces
each head, and the model itself adds the slots:

    features = [c₁x₁, c₂x₂, …],   output = Σ cᵢ headᵢ(featuresᵢ / cᵢ)

regraft measures the cᵢ. A forward pass proves every split afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from ..data.types import ImageSpec
from ..errors import SourceError
from . import _blocks, _image


def group(model: Any, x: Tensor) -> list[tuple[str, list[str]]]:
    """Return named groups of the backbone's tensors, input → output, as timm groups them, else by children.

    Not every architecture has a matcher, and not every matcher matches its names.
    """
    groups = by_matcher(model)
    names = sorted(_blocks.tensor_names(model))
    if len(groups) < 2 or sorted(t for _, g in groups for t in g) != names:
        return _blocks.by_children(model, x)
    return groups


def by_matcher(model: Any) -> list[tuple[str, list[str]]]:
    """Return timm's own coarse grouping with names, or an empty list where the architecture has none."""
    names = _blocks.tensor_names(model)
    # Parameters at the root (class token, positions, registers) enter with the patches.
    root = [n for n in names if "." not in n]
    try:
        matcher = model.group_matcher(coarse=True)
        levels = group_with_matcher([(n, n) for n in names if "." in n], matcher)
    except (AttributeError, AssertionError, NotImplementedError, TypeError, ValueError, IndexError):
        return []
    groups = [list(levels[level]) for level in sorted(levels)]
    if not groups:
        return []
    groups[0] = root + groups[0]
    tops = [[t for t in g if t.split(".")[0] == g[0].split(".")[0]] for g in groups]
    full = [_blocks.common_path(t) for t in tops]
    full[0] = _blocks.common_path(groups[0]) or "stem"
    named = [".".join(f.split(".")[: depth(f, full)]) for f in full]
    titles = named if len(set(named)) == len(named) else full
    if len(set(titles)) < len(titles):  # two groups inside one module: number them
        titles = [f"{t}-{i}" for i, t in enumerate(titles)]
    return list(zip(titles, groups, strict=True))


def depth(path: str, paths: list[str]) -> int:
    """Return the smallest depth among paths of the same top name, so that siblings have similar names."""
    top = path.split(".")[0]
    return min(len(p.split(".")) for p in paths if p.split(".")[0] == top)


def forward_steps(model: Any) -> list[str]:
    """Return the forward pass of common families as a chain of modules; empty for other families."""
    family = type(model).__name__
    if family == "EfficientNet":
        middle = [f"blocks.{i}" for i in range(len(model.blocks))]
        return ["conv_stem", "bn1", *middle, "conv_head", "bn2", "forward_head()"]
    if family == "MobileNetV3":
        middle = [f"blocks.{i}" for i in range(len(model.blocks))]
        last = ["global_pool", "conv_head", "norm_head", "act2", "flatten"]
        return ["conv_stem", "bn1", *middle, *last]
    if family == "ResNet":
        stem = ["conv1", "bn1", "act1", "maxpool"]
        return [*stem, "layer1", "layer2", "layer3", "layer4", "global_pool"]
    if family == "ConvNeXt":
        middle = [f"stages.{i}" for i in range(len(model.stages))]
        return ["stem", *middle, "norm_pre", "head"]
    if family == "VisionTransformer":
        middle = [f"blocks.{i}" for i in range(len(model.blocks))]
        stem = ["patch_embed", "_pos_embed()", "patch_drop", "norm_pre"]
        return [*stem, *middle, "norm", "forward_head()"]
    return []


def classifier_names(model: Any) -> tuple[str, ...]:
    """Return the dotted names of the model's heads; none for a model without one.

    A head that begins with the pooling, such as timm's ClassifierHead, is removed behind the pooling.
    """
    try:
        classifier = model.get_classifier()
    except (AttributeError, NotImplementedError):  # an encoder
        return ()
    given_heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
    heads: list[nn.Module] = []
    for head in given_heads:
        heads += head if isinstance(head, nn.ModuleList) else [head]
    heads = [behind_pooling(h) for h in heads if isinstance(h, nn.Module)]
    names = {id(m): str(n) for n, m in model.named_modules()}
    return tuple(names[id(h)] for h in heads if not isinstance(h, nn.Identity) and names.get(id(h)))


def behind_pooling(head: nn.Module) -> nn.Module:
    """Return the layer behind the pooling of a head that begins with one, else the head."""
    layer = getattr(head, "fc", None)
    return layer if hasattr(head, "global_pool") and isinstance(layer, nn.Module) else head


def take_off(model: nn.Module, names: Sequence[str], x: Tensor) -> nn.Module | None:
    """Return the head, which maps features [B, D] to outputs [B, C], and leave the features in its place."""
    heads = [as_linear(model.get_submodule(n)) for n in names]
    if len(heads) < 2:
        for name in names:
            model.set_submodule(name, nn.Identity())
        return heads[0] if heads else None
    inputs = head_inputs(model, names, x)
    shared = all(i.data_ptr() == inputs[0].data_ptr() and i.shape == inputs[0].shape for i in inputs)
    widths = [i.shape[1] for i in inputs]
    for i, name in enumerate(names):
        slot = Slot(sum(widths[:i]), sum(widths[i + 1 :]))
        model.set_submodule(name, nn.Identity() if shared else slot)
    if shared:
        return SharedHeads(heads)
    with torch.no_grad():
        parts = torch.split(model(x), widths, 1)
    scales = [float((f * i).sum() / (i * i).sum()) for f, i in zip(parts, inputs, strict=True)]
    return SlotHeads(heads, widths, scales)


def head_inputs(model: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """Return the input of each named module in a forward pass. Raises KeyError for a module without a call."""
    inputs: dict[str, Tensor] = {}
    _blocks.watch_calls(model, names, x, lambda name, args: inputs.setdefault(name, args[0]))
    return [inputs[n] for n in names]


def as_linear(head: nn.Module) -> nn.Module:
    """Return a 1×1 convolution as the linear layer that it is on pooled features, and any other head unchanged."""
    plain = type(head) is nn.Conv2d and head.kernel_size == (1, 1) and head.groups == 1
    if not plain:
        return head
    assert isinstance(head, nn.Conv2d)
    linear = nn.Linear(head.in_channels, head.out_channels, bias=head.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(head.weight.flatten(1))
        if head.bias is not None:
            linear.bias.copy_(head.bias)
    return linear.train(head.training)


class Slot(nn.Module):
    """A place in the features: the input with zeros before and behind it."""

    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        self.sides = (before, behind)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.sides)


class SharedHeads(nn.Module):
    """The mean of several heads that read the same features."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in self.heads]).mean(0)


class SlotHeads(nn.Module):
    """The sum of several heads, each of which reads its slot of the features."""

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = list(widths)
        self.scales = list(scales)

    def forward(self, features: Tensor) -> Tensor:
        parts = zip(self.heads, torch.split(features, self.widths, 1), self.scales, strict=True)
        return torch.stack([c * head(part / c) for head, part, c in parts]).sum(0)


def class_names(model: Any, classes: int) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, tuple[str, ...]]:
    """Return (names, descriptions, notes) of a head's classes, from a saved configuration, else ImageNet's for 1000."""
    stored, descriptions = (model.pretrained_cfg.get(k) for k in ("label_names", "label_descriptions"))
    if not classes or not stored:
        return (*(imagenet_classes() if classes == 1000 else (None, None)), ())
    if isinstance(stored, dict):
        stored = [stored.get(i, stored.get(str(i))) for i in range(len(stored))]
    names = tuple(map(str, stored))
    if len(names) != classes or len(set(names)) != classes or None in stored:
        return (
            None,
            None,
            (f"label_names of its configuration is not used: {len(set(names))} names for {classes} classes",),
        )
    words = (
        tuple(str(descriptions[n]) for n in names)
        if isinstance(descriptions, dict) and descriptions.keys() >= set(names)
        else None
    )
    return names, words, ()


def image_spec(model: Any) -> tuple[ImageSpec, tuple[str, ...]]:
    """Return timm's evaluation transform: shorter side to floor(size / crop_pct), centre crop."""
    config = resolve_model_data_config(model)
    _, height, width = config["input_size"]
    resize = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if config["crop_mode"] == "border" or (config["crop_mode"] == "center" and height != width):
        raise SourceError(f'crop mode "{config["crop_mode"]}" at {height}x{width} is not supported')
    squash = config["crop_mode"] == "squash"
    spec = ImageSpec(
        size=(height, width),
        resize=(resize[0], resize[1]) if squash else resize[0],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    spec, note = _image.with_channels(spec, getattr(model, "in_chans", None) or channels(model))
    return spec, (note,) if note else ()


def channels(model: Any) -> int:
    """Return the picture channels of the first convolution, the only place where timm keeps them."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


@cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the 1000 WordNet ids of ImageNet in output order, and their descriptions.

    The ids are unique; the descriptions, synonyms separated by commas, are not.
    """
    info = ImageNetInfo("imagenet-1k")
    ids = tuple(info.index_to_label_name(i) for i in range(1000))
    return ids, tuple(info.index_to_description(i) for i in range(1000))
