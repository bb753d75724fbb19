"""The classifier of a timm model, taken off: one layer, a 1×1 convolution, or several heads at once.

Several heads give one output, as in distilled models: Σ cᵢ headᵢ(xᵢ). Where all see the same x the features
are x. Else each head gives way to a slot of the features, which the model itself adds up:

    features = [c₁x₁, c₂x₂, …],   output = Σ cᵢ headᵢ(featuresᵢ / cᵢ)

The cᵢ are measured. Every split is proved afterwards by a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def classifier_names(model: Any) -> tuple[str, ...]:
    """Return the dotted names of the model's heads; none for a model without one.

    A head that begins with the pooling, as timm's ClassifierHead, is taken off behind the pooling.
    """
    try:
        found = model.get_classifier()
    except (AttributeError, NotImplementedError):  # an encoder
        return ()
    several = found if isinstance(found, tuple | list) else (found,)
    heads: list[nn.Module] = []
    for head in several:
        heads += head if isinstance(head, nn.ModuleList) else [head]
    heads = [behind_pooling(h) for h in heads if isinstance(h, nn.Module)]
    names = {id(m): str(n) for n, m in model.named_modules()}
    return tuple(names[id(h)] for h in heads if not isinstance(h, nn.Identity) and names.get(id(h)))


def behind_pooling(head: nn.Module) -> nn.Module:
    layer = getattr(head, "fc", None)
    return layer if hasattr(head, "global_pool") and isinstance(layer, nn.Module) else head


def take_off(model: nn.Module, names: Sequence[str], x: Tensor) -> nn.Module | None:
    """Return the head, features [B, D] → outputs [B, C], and leave the features in its place."""
    heads = [as_linear(model.get_submodule(n)) for n in names]
    if len(heads) < 2:
        for name in names:
            model.set_submodule(name, nn.Identity())
        return heads[0] if heads else None
    seen = head_inputs(model, names, x)
    shared = all(i.data_ptr() == seen[0].data_ptr() and i.shape == seen[0].shape for i in seen)
    widths = [i.shape[1] for i in seen]
    for i, name in enumerate(names):
        slot = Slot(sum(widths[:i]), sum(widths[i + 1 :]))
        model.set_submodule(name, nn.Identity() if shared else slot)
    if shared:
        return SharedHeads(heads)
    with torch.no_grad():
        parts = torch.split(model(x), widths, 1)
    scales = [float((f * i).sum() / (i * i).sum()) for f, i in zip(parts, seen, strict=True)]
    return SlotHeads(heads, widths, scales)


@contextmanager
def record_inputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Note the first input of each named module during forward passes inside."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def noted(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, args[0])

        return noted

    hooks = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def head_inputs(model: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """Return what each named module is given in a forward pass. Raises KeyError for one without a call."""
    with record_inputs(model, names) as seen, torch.no_grad():
        model(x)
    return [seen[n] for n in names]


def as_linear(head: nn.Module) -> nn.Module:
    """Return a 1×1 convolution as the linear layer that it is on pooled features; all else unchanged."""
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
    """A place in the features: zeros before and behind what it is given."""

    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        self.sides = (before, behind)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.sides)


class SharedHeads(nn.Module):
    """The mean of several heads of the same features."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in self.heads]).mean(0)


class SlotHeads(nn.Module):
    """The sum of several heads, each of its slot of the features."""

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = list(widths)
        self.scales = list(scales)

    def forward(self, features: Tensor) -> Tensor:
        parts = zip(self.heads, torch.split(features, self.widths, 1), self.scales, strict=True)
        return torch.stack([c * head(part / c) for head, part, c in parts]).sum(0)
