"""New random weights, as for training from scratch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import SourceError
from ..plugins import module

if TYPE_CHECKING:
    from .types import Source


def untrained(source: Source, seed: int) -> Source:
    """Return the source's architecture with random weights, a function of ``seed``; nothing is kept.

    Raises SourceError if the architecture cannot be built without its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source.recipe.get("source") == "module":
            backbone = reset(copy.deepcopy(source.backbone).cpu())  # the CPU draws the same numbers on every machine
        else:
            build = module("sources", source.recipe["source"]).build
            backbone = build(source.recipe, Path(source.recipe.get("folder", "."))).backbone
    return replace(
        source,
        backbone=backbone,
        head=None,
        report=(),
        digest="",
        nothing_kept=True,
        name=f"{source.name} from scratch",
    )


def reset(net: nn.Module) -> nn.Module:
    """Draw the weights of every module anew by its reset_parameters()."""
    for name, child in reversed(list(net.named_modules())):  # parents last: theirs may overwrite a child's
        own = list(child.parameters(recurse=False))
        draw: Callable[[], None] | None = getattr(child, "reset_parameters", None)
        if draw is not None:
            draw()
        elif own:
            raise SourceError(
                f'the scratch control cannot be built: "{name}" ({type(child).__name__}) has '
                f"parameters but no reset_parameters(); give it one, or leave out scratch"
            )
    return net
