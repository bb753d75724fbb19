"""The scratch control: the same architecture from random weights, as good as its budget lets it be."""

from __future__ import annotations

import numpy as np

from ..errors import DivergedError
from ..evidence.selection import improves
from ..io.streams import Report
from ..model import reinitialise
from ..training.checkpoints import CheckpointManager
from ..training.records import FitResult
from ..training.settings import Settings
from . import scratch_search
from .arms import Arm, Figures, Track, cross_validate, each_arm, fit_arm, initial_target, load_or_fit
from .prepare import Prepared


def fit_scratch(p: Prepared, say: Report, track: Track | None, keeper: CheckpointManager) -> tuple[list[Arm], str]:
    """The scratch control for every seed, and how it was chosen: what is best for the first seed on
    val, or by folds where there is no val."""
    budget = p.scratch
    assert budget is not None
    say(str(budget))

    def fitted(chosen: Settings, seed: int, label: str) -> Arm:
        source = reinitialise.untrained(p.source, seed)
        return load_or_fit(
            keeper,
            label,
            p,
            source,
            seed,
            lambda: fit_arm(p, source, chosen, seed, start=None, track=track, label=label, keeper=keeper),
        )

    def again(seed: int) -> Arm:
        try:
            return fitted(chosen, seed, f"scratch {name}, seed {seed}")
        except DivergedError as error:
            raise DivergedError(
                f"scratch, {how}, diverged with seed {seed}: give evaluate.scratch_rates one lower "
                f"rate, or leave out the scratch control ({error})"
            ) from error

    first = reinitialise.untrained(p.source, p.seeds[0])
    arms: dict[str, Arm] = {}  # the best try of the first seed
    worst = -np.inf if p.metric.higher_is_better else np.inf
    lost = {p.task.primary: worst, "loss": np.inf}  # figures of a try that diverged

    def better(a: Figures, b: Figures) -> bool:
        return improves(a, b, p.metric)

    def out(name: str, error: DivergedError) -> None:
        say(f"scratch {name} is out: {error}")
        keeper.forget()

    def survived(name: str, chosen: Settings) -> Arm:
        try:
            return fitted(chosen, p.seeds[0], f"scratch {name}")
        except DivergedError as error:
            out(name, error)
            nothing = FitResult(0, 0, 0, lost, lost, "diverged")
            return Arm(initial_target(p, first, p.seeds[0], None), nothing)

    def by_val(every: dict[str, Settings]) -> dict[str, Figures]:
        found = each_arm(
            p,
            list(every),
            lambda name: survived(name, every[name]),
            lambda _: initial_target(p, first, p.seeds[0], None),
        )
        arms.update(zip(every, found, strict=True))
        best = scratch_search.best_of({name: arm.fit.best for name, arm in arms.items()}, better)
        for name in arms.keys() - {best}:  # models on the device
            del arms[name]
        return {name: arm.fit.best for name, arm in zip(every, found, strict=True)}

    def by_folds(every: dict[str, Settings]) -> dict[str, Figures]:
        found = {}
        for name, chosen in every.items():
            label = f"scratch {name} fold"
            try:
                (point,) = cross_validate(p, first, chosen, None, keeper, label).points
                found[name] = point.figures
            except DivergedError as error:
                out(name, error)
                found[name] = lost
        return found

    if p.splits.val or p.folds():
        by = "val" if p.splits.val else "cross-validation"
        tried = by_val if p.splits.val else by_folds
        name, chosen, _ = scratch_search.search(p.settings, budget, tried, better, lost)
    else:
        rate = budget.rates[len(budget.rates) // 2]
        chosen = scratch_search.scratch_settings(p.settings, budget, rate)
        name, by = f"{rate:g}", "nothing: too few rows"
    how = f"rate {name}, chosen by {by}"
    say(f"scratch: {how}")
    done = [arms[name]] if name in arms else []  # of the first seed
    others = each_arm(
        p,
        p.seeds[len(done) :],
        again,
        lambda seed: initial_target(p, reinitialise.untrained(p.source, seed), seed, None),
    )
    return done + others, how
