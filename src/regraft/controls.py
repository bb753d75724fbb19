"""Controls: what the fit is compared with, on the same rows.

    majority (or mean)   the training frequencies (or mean) for every row
    linear probe         the head fitted on frozen features
    scratch              the same architecture without the source's weights

The scratch control is no straw man: five times the fit's epochs by default, with early stopping on
val, every block at the head's rate, batch norms training, and the best of three rates on val.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .errors import SourceError
from .loop import Settings
from .plugins import module

if TYPE_CHECKING:
    from .types import Source


@dataclass(frozen=True)
class ScratchBudget:
    """Both budgets are printed: a comparison of unequal ones proves nothing."""

    epochs: int
    patience: int  # 0 without val
    rates: tuple[float, ...]
    fit_epochs: int

    def __str__(self) -> str:
        stop = f", stopping after {self.patience} without gain on val" if self.patience else ""
        rates = ", ".join(f"{r:g}" for r in self.rates)
        return (
            f"scratch: {self.epochs} epochs against the fit's {self.fit_epochs}{stop}; "
            f"the best rate of {rates}"
        )


def scratch_budget(
    settings: Settings, scratch_lr: float, factors: list[float], budget: float, has_val: bool
) -> ScratchBudget:
    return ScratchBudget(
        epochs=max(settings.epochs, ceil(settings.epochs * budget)),
        patience=max(5, settings.epochs) if has_val else 0,
        rates=tuple(scratch_lr * f for f in factors),
        fit_epochs=settings.epochs,
    )


def scratch_settings(settings: Settings, budget: ScratchBudget, rate: float) -> Settings:
    """The fit's settings without what only makes sense for weights that were kept."""
    return replace(
        settings,
        epochs=budget.epochs,
        patience=budget.patience,
        rates=dict.fromkeys(settings.rates, rate),
        batch_norm="train",
    )


def untrained(source: Source, seed: int) -> Source:
    """The source's architecture with weights drawn after ``seed``; nothing is kept.

    Raises SourceError where the architecture cannot be built without its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source.recipe.get("source") == "module":
            backbone = reset(copy.deepcopy(source.backbone).cpu())  # where any device draws alike
        else:
            build = module("sources", source.recipe["source"]).build
            backbone = build(source.recipe, Path(source.recipe.get("folder", "."))).backbone
    return replace(
        source, backbone=backbone, head=None, report=(), digest="", nothing_kept=True,
        name=f"{source.name} from scratch",
    )  # fmt: skip


def reset(net: nn.Module) -> nn.Module:
    """Every module of one's own drawn anew by its reset_parameters."""
    for name, child in net.named_modules():
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
