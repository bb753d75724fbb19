"""The scratch control: the same architecture from random weights, as good as its budget allows.

By default it has five times the fit's epochs, early stopping on val, every block at the head's rate, and batch norms
that train. Its rate is the best of three on val, or of further ones while the best is the outermost. Some settings suit
kept weights: a moving average, sharpness-aware steps, an unusual weight decay, penalties. Scratch has each only if it
is better with it. In an average over a whole fit, random initial weights stay random; and a penalty that a small rate
hardly feels dominates where the rate is many times as large.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import DivergedError
from ..evidence.selection import improves
from ..io.log import LOGGER
from ..model import reinitialise
from ..training.records import FitResult
from ..training.settings import Settings
from .arms import Arm, ArmFitter
from .folds import FoldFitter
from .resolve import MAX_FURTHER_RATES, ScratchBudget

if TYPE_CHECKING:
    from ..model.types import Target
    from .job import Figures

Result = TypeVar("Result")


@dataclass(frozen=True)
class ScratchFits:
    """The fits of the scratch control, by the settings that were chosen for its first seed."""

    tries: ScratchTries
    name: str
    settings: Settings
    how: str  # the settings were chosen

    @classmethod
    def chosen(cls, fitter: ArmFitter) -> ScratchFits:
        """Choose the settings: the best for the first seed on val, or by folds where there is no val."""
        job, budget = fitter.job, fitter.job.scratch
        assert budget is not None
        LOGGER.info("%s", budget)
        quiet = replace(fitter, on_epoch=lambda seed, epoch: None, level=logging.DEBUG)
        tries = ScratchTries(quiet)
        if job.data.splits.val or job.data.folds():
            by = "val" if job.data.splits.val else "cross-validation"
            figures = tries.by_val if job.data.splits.val else tries.by_folds
            name, settings, _ = search(job.spec.settings, budget, figures, tries.better, tries.lost)
        else:
            rate = budget.rates[len(budget.rates) // 2]
            settings = scratch_settings(job.spec.settings, budget, rate)
            name, by = f"{rate:g}", "nothing: too few rows"
        how = f"rate {name}, chosen by {by}"
        LOGGER.info("scratch: %s", how)
        return cls(tries, name, settings, how)

    def fit(self, seeds: Sequence[int]) -> list[Arm]:
        """Fit these seeds; the first seed of the job was fitted by the tries on val."""
        fitter, tried = self.tries.fitter, self.tries.arms.get(self.name)
        done = [tried] if tried is not None and seeds[0] == fitter.job.seeds[0] else []
        return done + fitter.fit_each(seeds[len(done) :], self.fit_seed, self.tries.initial_target)

    def fit_seed(self, seed: int) -> Arm:
        """Fit one seed, or load its arm. Raises DivergedError with the remedy."""
        try:
            return self.tries.fit(self.settings, seed, f"scratch {self.name}, seed {seed}")
        except DivergedError as error:
            raise DivergedError(
                f"scratch, {self.how}, diverged with seed {seed}: give evaluate.scratch_rates one lower "
                f"rate, or leave out the scratch control ({error})"
            ) from error


@dataclass
class ScratchTries:
    """The tries of the first seed, of which the best settings are those of all seeds."""

    fitter: ArmFitter
    arms: dict[str, Arm] = field(default_factory=dict)  # the best one

    @property
    def lost(self) -> Figures:
        """Return the figures of a try that diverged."""
        spec = self.fitter.job.spec
        worst = -np.inf if spec.metric.higher_is_better else np.inf
        return {spec.task.primary: worst, "loss": np.inf}

    def better(self, a: Figures, b: Figures) -> bool:
        """Return whether figures ``a`` are better than ``b``."""
        return improves(a, b, self.fitter.job.spec.metric)

    def initial_target(self, seed: int) -> Target:
        """Return the target with random weights, as its fit starts."""
        job = self.fitter.job
        return job.initial_target(reinitialise.untrained(job.source, seed), seed)

    def fit(self, settings: Settings, seed: int, label: str) -> Arm:
        """Fit one seed from random weights, or load the arm from its checkpoint."""
        source = reinitialise.untrained(self.fitter.job.source, seed)
        return self.fitter.load_or_fit(
            label, source, seed, lambda: self.fitter.fit(source, settings, seed, label=label)
        )

    def by_val(self, every: dict[str, Settings]) -> dict[str, Figures]:
        """Return the figures on val of fits of the first seed, by name."""
        seed = self.fitter.job.seeds[0]

        def fit(name: str) -> Arm:
            try:
                return self.fit(every[name], seed, f"scratch {name}")
            except DivergedError as error:
                self._drop(name, error)
                return Arm(self.initial_target(seed), FitResult(0, 0, 0, self.lost, self.lost, "diverged"))

        arms = self.fitter.fit_each(list(every), fit, lambda _: self.initial_target(seed))
        self.arms.update(zip(every, arms, strict=True))
        best = best_of({name: arm.fit.best for name, arm in self.arms.items()}, self.better)
        for name in self.arms.keys() - {best}:  # models on the device
            del self.arms[name]
        return {name: arm.fit.best for name, arm in zip(every, arms, strict=True)}

    def by_folds(self, every: dict[str, Settings]) -> dict[str, Figures]:
        """Return the figures over folds of fits of the first seed, by name."""
        source = reinitialise.untrained(self.fitter.job.source, self.fitter.job.seeds[0])
        figures = {}
        for name, settings in every.items():
            try:
                (point,) = FoldFitter(self.fitter).cross_validate(source, settings, None, f"scratch {name} fold").points
                figures[name] = point.figures
            except DivergedError as error:
                self._drop(name, error)
                figures[name] = self.lost
        return figures

    def _drop(self, name: str, error: DivergedError) -> None:
        LOGGER.info("scratch %s is out: %s", name, error)
        if self.fitter.checkpoints is not None:
            self.fitter.checkpoints.forget()


# ---------------------------------------------------------------- the search for its settings


def scratch_settings(settings: Settings, budget: ScratchBudget, rate: float) -> Settings:
    """Return the fit's settings without those that were meant for kept weights."""
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
    """Return the best settings of scratch with their name and result.

    The search tries every rate, further rates while the best is the outermost, and the best rate with what else
    the fit has. ``tried`` returns results of settings by name, ``lost`` if a fit diverged. Of equal results the
    first wins. Raises DivergedError if every fit diverged.
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
    for _ in range(MAX_FURTHER_RATES if len(rates) > 1 else 0):
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
