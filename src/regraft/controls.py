"""Controls: what the fit is compared with, on the same rows.

    majority (or mean)   the training frequencies (or mean) for every row
    linear probe         the head fitted on frozen features
    scratch              the same architecture without the source's weights

The scratch control is no straw man: five times the fit's epochs by default, with early stopping on
val, every block at the head's rate, batch norms training, and the best of three rates on val. A
moving average and sharpness-aware steps of the fit it has only where it is better with them: in an
average that spans a whole fit, weights that start at random stay random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from .errors import SourceError
from .loop import Settings
from .plugins import module

if TYPE_CHECKING:
    from .types import Source

MORE = ("average", "sharpness")  # settings of a fit that can be too much for weights at random
Found = TypeVar("Found")


@dataclass(frozen=True)
class ScratchBudget:
    """Both budgets are printed: a comparison of unequal ones proves nothing."""

    epochs: int
    patience: int  # 0 without val
    rates: tuple[float, ...]
    fit_epochs: int
    more: Mapping[str, float] = field(default_factory=dict)  # of the fit's settings, tried last

    @property
    def tries(self) -> int:
        """Fits of the first seed, of which the best one stands."""
        return len(self.rates) + bool(self.more)

    def __str__(self) -> str:
        stop = f", stopping after {self.patience} without gain on val" if self.patience else ""
        rates = ", ".join(f"{r:g}" for r in self.rates)
        more = f", alone or with the fit's {self.named}" if self.more else ""
        return (
            f"scratch: {self.epochs} epochs against the fit's {self.fit_epochs}{stop}; "
            f"the best rate of {rates}{more}"
        )

    @property
    def named(self) -> str:
        return " and ".join(f"{name} {value:g}" for name, value in self.more.items())


def scratch_budget(
    settings: Settings, scratch_lr: float, factors: list[float], budget: float, has_val: bool
) -> ScratchBudget:
    return ScratchBudget(
        epochs=max(settings.epochs, ceil(settings.epochs * budget)),
        patience=max(5, settings.epochs) if has_val else 0,
        rates=tuple(scratch_lr * f for f in factors),
        fit_epochs=settings.epochs,
        more={name: value for name in MORE if (value := getattr(settings, name))},
    )


def scratch_settings(settings: Settings, budget: ScratchBudget, rate: float) -> Settings:
    """The fit's settings without what was meant for weights that were kept."""
    off: dict[str, Any] = dict.fromkeys(MORE, 0.0)
    return replace(
        settings,
        epochs=budget.epochs,
        patience=budget.patience,
        rates=dict.fromkeys(settings.rates, rate),
        batch_norm="train",
        **off,
    )


def search(
    settings: Settings,
    budget: ScratchBudget,
    tried: Callable[[dict[str, Settings]], Mapping[str, Found]],
    better: Callable[[Found, Found], bool],
) -> tuple[str, Settings, Found]:
    """What scratch is best with, by name: every rate, then the best of them with ``budget.more``.

    ``tried`` gives what was found with settings by name; of equal ones the first stands.
    """
    alone = " alone" if budget.more else ""
    every = {f"{r:g}{alone}": scratch_settings(settings, budget, r) for r in budget.rates}
    found = dict(tried(every))
    best = best_of(found, better)
    if budget.more:
        name = f"{best.removesuffix(alone)} with {budget.named}"
        more: dict[str, Any] = dict(budget.more)
        every[name] = replace(every[best], **more)
        found |= tried({name: every[name]})
        best = best_of({n: found[n] for n in (best, name)}, better)
    return best, every[best], found[best]


def best_of(found: Mapping[str, Found], better: Callable[[Found, Found], bool]) -> str:
    best, *others = found
    for name in others:
        if better(found[name], found[best]):
            best = name
    return best


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
    for name, child in reversed(list(net.named_modules())):  # a parent's has the last word
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
