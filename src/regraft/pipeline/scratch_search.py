"""Controls: what the fit is compared with, on the same rows.

    majority (or mean)   the training frequencies (or mean) for every row
    linear probe         the head fitted on frozen features
    scratch              the same architecture without the source's weights

The scratch control is no straw man: five times the fit's epochs by default, with early stopping on
val, every block at the head's rate, batch norms training, and the best of three rates on val, or
of further ones while the best is the outermost. What was set for weights that were kept (a moving
average, sharpness-aware steps, a weight decay of one's own, penalties) it has only where it is
better with it: in an average that spans a whole fit, weights that start at random stay random, and
a penalty that a small rate hardly feels rules where the rate is many times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, TypeVar

from ..errors import DivergedError
from ..training.settings import Settings

FURTHER = 2  # rates beyond the outermost, as long as that is the best

Result = TypeVar("Result")


@dataclass(frozen=True)
class ScratchBudget:
    """Both budgets are printed: a comparison of unequal ones proves nothing."""

    epochs: int
    patience: int  # 0 without val
    rates: tuple[float, ...]
    fit_epochs: int
    weight_decay: float = 0.0  # usual for the optimiser
    more: Mapping[str, float] = field(default_factory=dict)  # of the fit's settings, tried last
    penalties: tuple[str, ...] = ()  # the fit's that need no source, tried last too

    @property
    def tries(self) -> int:
        """Fits of the first seed, at most, of which the best one stands."""
        further = FURTHER if len(self.rates) > 1 else 0
        return len(self.rates) + further + bool(self.named)

    def fits(self, seeds: int, folds: int) -> int:
        """Whole fits, at most: on val a try is that of the first seed; by ``folds`` it is one of each
        fold on the others, and of no seed."""
        return seeds + self.tries * (folds - 1) if folds else seeds - 1 + self.tries

    def __str__(self) -> str:
        stop = f", stopping after {self.patience} without gain on val" if self.patience else ""
        rates = ", ".join(f"{r:g}" for r in self.rates)
        further = " and beyond where the best is the outermost" if len(self.rates) > 1 else ""
        more = f", alone or with the fit's {self.named}" if self.named else ""
        return (
            f"scratch: {self.epochs} epochs against the fit's {self.fit_epochs}{stop}; "
            f"the best rate of {rates}{further}{more}"
        )

    @property
    def named(self) -> str:
        more = (f"{name.replace('_', ' ')} {value:g}" for name, value in self.more.items())
        return " and ".join([*more, *self.penalties])


def scratch_budget(
    settings: Settings,
    scratch_lr: float,
    factors: Sequence[float],
    budget: float,
    *,
    has_val: bool,
    weight_decay: float,
    penalties: Sequence[str] = (),
) -> ScratchBudget:
    """``weight_decay`` is what is usual for the optimiser; ``penalties`` those that need no source."""
    usual = {"average": 0.0, "sharpness": 0.0, "weight_decay": weight_decay}
    return ScratchBudget(
        epochs=max(settings.epochs, ceil(settings.epochs * budget)),
        patience=max(5, settings.epochs) if has_val else 0,
        rates=tuple(scratch_lr * f for f in sorted(set(factors))),
        fit_epochs=settings.epochs,
        weight_decay=weight_decay,
        more={n: value for n, u in usual.items() if (value := getattr(settings, n)) != u},
        penalties=tuple(penalties),
    )


def scratch_settings(settings: Settings, budget: ScratchBudget, rate: float) -> Settings:
    """The fit's settings without what was meant for weights that were kept."""
    return replace(
        settings,
        epochs=budget.epochs,
        patience=budget.patience,
        rates=dict.fromkeys(settings.rates, rate),
        batch_norm="train",
        average=0.0,
        sharpness=0.0,
        weight_decay=budget.weight_decay,
        penalties=False,
    )


def search(
    settings: Settings,
    budget: ScratchBudget,
    tried: Callable[[dict[str, Settings]], Mapping[str, Result]],
    better: Callable[[Result, Result], bool],
    lost: Result,
) -> tuple[str, Settings, Result]:
    """What scratch is best with, by name: every rate, further ones while the best is the outermost,
    and the best of them with what else the fit has.

    ``tried`` gives what was found with settings by name, ``lost`` where that diverged; of equal ones
    the first stands. Raises DivergedError where all of them did.
    """
    alone = " alone" if budget.named else ""
    every, found = dict[str, Settings](), dict[str, Result]()

    def best_with(some: dict[str, Settings]) -> str:
        every.update(some)
        found.update(tried(some))
        return best_of(found, better)

    def bare(*rates: float) -> dict[str, Settings]:
        return {f"{r:g}{alone}": scratch_settings(settings, budget, r) for r in rates}

    rates = list(budget.rates)
    best = best_with(bare(*rates))
    for _ in range(FURTHER if len(rates) > 1 else 0):
        if best in bare(rates[-1]):
            further = rates[-1] * (rates[-1] / rates[-2])
            rates.append(further)
        elif best in bare(rates[0]):
            further = rates[0] * (rates[0] / rates[1])
            rates.insert(0, further)
        else:
            break
        best = best_with(bare(further))
    if budget.named:
        more: dict[str, Any] = {**budget.more, "penalties": True}
        name = f"{best.removesuffix(alone)} with {budget.named}"
        best = best_with({name: replace(every[best], **more)})
    if found[best] == lost:
        raise DivergedError(
            f"from scratch every rate diverged ({', '.join(f'{r:g}' for r in rates)}): lower "
            "evaluate.scratch_rates, or leave out the scratch control"
        )
    return best, every[best], found[best]


def best_of(found: Mapping[str, Result], better: Callable[[Result, Result], bool]) -> str:
    best, *others = found
    for name in others:
        if better(found[name], found[best]):
            best = name
    return best
