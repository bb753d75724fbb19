"""Source → Target: a copy of the backbone, a fresh head, and the anchor θs.

    Mt(x) = head(backbone(x)),   backbone = copy of the source's,   head: R^D → R^C fresh

The anchor is cloned here and nowhere else. (TLlib keeps θs without a copy: its L2-SP is 0 always.)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from .types import Block, LoadedTensor, Source, Target

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import Inputs


class Model(nn.Module):
    """A backbone with a head; its tensors are named "backbone.…" and "head.…"."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Inputs) -> Tensor:
        """Return logits [B, C]."""
        features = self.backbone(inputs)  # [B, D]
        return self.head(features)  # type: ignore[no-any-return]  # [B, C]


def graft(source: Source, outputs: int, *, seed: int = 0) -> Target:
    """Make a target model with C = ``outputs`` from a source, which stays untouched.

    The head's weights are normal with standard deviation 0.01 and its bias is 0, so that the first gradients
    into the backbone are small. They are a function of ``seed`` alone.
    """
    backbone = copy.deepcopy(source.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(source.features, outputs)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    some = next(backbone.parameters(), None)
    if some is not None:
        head.to(some.device)
    model = Model(backbone, head)
    names = set(backbone.state_dict())
    kept = {t.name for t in source.report if t.state in ("kept", "resized")}
    anchor = {
        f"backbone.{name}": p.detach().clone()
        for name, p in backbone.named_parameters()
        if name in kept and not source.nothing_kept
    }
    return Target(
        model=model,
        blocks=join_blocks(source.blocks, head),
        anchor=anchor,
        report=(*(relabel(t, names) for t in source.report), *report_head(head)),
        source=source,
        nothing_kept=source.nothing_kept,
    )


def join_blocks(blocks: tuple[Block, ...], head: nn.Module) -> tuple[Block, ...]:
    """Return the backbone's blocks under the model's names, then "head", to which the root module belongs."""
    under = tuple(
        Block(
            name=b.name,
            tensors=tuple(f"backbone.{t}" for t in b.tensors),
            modules=tuple(f"backbone.{m}" if m else "backbone" for m in b.modules),
            run=b.run,
        )
        for b in blocks
    )
    tensors = tuple(f"head.{name}" for name, _ in head.named_parameters())
    modules = ("", *(f"head.{m}" if m else "head" for m, _ in head.named_modules()))
    return (*under, Block("head", tensors, modules))


def relabel(tensor: LoadedTensor, backbone: set[str]) -> LoadedTensor:
    """Return a line of the source's loading report for the target: only the backbone is kept."""
    if tensor.state == "unused" or tensor.name in backbone:
        return tensor
    return LoadedTensor(tensor.name, "unused", tensor.shape, tensor.note or "the source's own head")


def report_head(head: nn.Module) -> list[LoadedTensor]:
    """Return the lines of the loading report for a new head."""
    return [LoadedTensor(f"head.{n}", "fresh", tuple(p.shape)) for n, p in head.named_parameters()]
