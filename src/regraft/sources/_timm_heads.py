"""Classifier of a timm model, removed: one layer, a 1×1 convolution, or several heads at once.

Several heads give one output, as in distilled models: Σ cᵢ headᵢ(xᵢ). Where all heads read the same x, the
features are x. Otherwise a slot of the features replaces each head, and the model itself adds the slots:

    features = [c₁x₁, c₂x₂, …],   output = Σ cᵢ headᵢ(featuresᵢ / cᵢ)

regraft measures the cᵢ. A forward pass proves every split afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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


@contextmanager
def record_inputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the first input of each named module during forward passes inside the block."""
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def noted(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs.setdefault(name, args[0])

        return noted

    hooks = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def head_inputs(model: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """Return the input of each named module in a forward pass. Raises KeyError for a module without a call."""
    with record_inputs(model, names) as inputs, torch.no_grad():
        model(x)
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
