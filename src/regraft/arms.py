"""Arms: one fitted model a seed, for the fit and for the scratch control; and the contest by folds
that takes val's place where there are too few rows for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import controls, plugins
from .features import Outputs, outputs
from .grafting import graft
from .linear_probe import Probe, fit_probe
from .loop import Epoch, Fit, Settings, fine_tune, improves
from .prepare import Prepared
from .types import Source, Target

if TYPE_CHECKING:
    from .batches import Batches

Say = Callable[[str], None]
Track = Callable[["Batches", int, str], "Batches"]  # draws a bar around training batches
Figures = dict[str, float]  # the primary metric and "loss"


@dataclass(frozen=True)
class Arm:
    """A fitted model and how it came about."""

    target: Target
    fit: Fit


def fit_arm(
    p: Prepared,
    source: Source,
    chosen: Settings,
    seed: int,
    *,
    start: Probe | None,
    log: Callable[[Epoch], None] = lambda epoch: None,
    track: Track | None = None,
    rows: Sequence[int] | None = None,
    label: str = "fit",
) -> Arm:
    """Graft and fit with one seed, from a probe's head where one is given.

    ``rows`` restricts training to some rows of train, as cross-validation does.
    """
    target = graft(source, p.task.outputs, seed=seed)
    if start is not None:
        start.write_to(target.model.get_submodule("head"))
    penalties = {
        name: r.prepare(target)
        for name, r in p.regularizers.items()
        if not (source.nothing_kept and r.pulls_to_source)  # there is nothing to pull to
    }
    train = p.batches("train", rows, seed=seed, train=True)
    everything = plugins.options_class("freezing", "everything")()
    done = fine_tune(
        target,
        track(train, chosen.epochs, label) if track else train,
        p.batches("val") if p.splits.val else None,
        p.task, p.metric, chosen,
        freezing=everything if source.nothing_kept else p.freezing,
        penalties=penalties, device=p.device, seed=seed, log=log,
    )  # fmt: skip
    return Arm(target, done)


def logits_of(
    p: Prepared, target: Target, split: str, rows: Sequence[int] | None = None
) -> Outputs:
    return outputs(target.model, p.batches(split, rows), p.device, p.settings.layout)


def figures_of(p: Prepared, rows: Sequence[Outputs]) -> Figures:
    """The primary metric and the mean loss over parts taken together."""
    logits = torch.cat([o.values for o in rows])
    targets = torch.cat([o.targets for o in rows])
    truth, scores = p.task.truth(targets).numpy(), p.task.scores(logits).numpy()
    value = p.metric.value(truth, scores, np.ones((1, len(truth))))[0]
    return {p.task.primary: float(value), "loss": float(p.task.loss(logits, targets).mean())}


# ---------------------------------------------------------------- by folds, where there is no val


def cross_validate(
    p: Prepared, source: Source, chosen: Settings, features: Outputs | None
) -> dict[str, Figures]:
    """ "fit" and, from ``features``, "linear probe": each row judged by models that never saw it.

    The probe of a fold has its λ chosen within the fold's own training rows.
    """
    probed: list[Outputs] = []
    fitted: list[Outputs] = []
    for fit_rows, judge_rows in p.folds():
        start = None
        if features is not None:
            inner = features.take(fit_rows)
            start = fit_probe(inner, p.task, p.plan.probe.strengths, folds=p.folds(fit_rows))
            judged = features.take(judge_rows)
            probed.append(replace(judged, values=start.logits(judged.values)))
        arm = fit_arm(p, source, chosen, p.seeds[0], start=start, rows=fit_rows)
        fitted.append(logits_of(p, arm.target, "train", judge_rows))
    figures = {"fit": figures_of(p, fitted)}
    return figures | ({"linear probe": figures_of(p, probed)} if probed else {})


# ---------------------------------------------------------------- the scratch control


def fit_scratch(p: Prepared, say: Say, track: Track | None) -> list[Arm]:
    """The scratch control for every seed. Its rate is the best for the first seed: on val, or by
    folds where there is no val."""
    assert p.scratch is not None
    say(str(p.scratch))
    first = controls.untrained(p.source, p.seeds[0])
    figures: dict[float, Figures] = {}
    arms: dict[float, Arm] = {}
    for rate in p.scratch.rates:
        chosen = controls.scratch_settings(p.settings, p.scratch, rate)
        if p.splits.val:
            arms[rate] = fit_arm(
                p, first, chosen, p.seeds[0], start=None, track=track, label=f"scratch {rate:g}"
            )
            figures[rate] = arms[rate].fit.best
        elif p.folds():
            figures[rate] = cross_validate(p, first, chosen, None)["fit"]
    rate = best_rate(p, figures) if figures else p.scratch.rates[len(p.scratch.rates) // 2]
    by = "val" if p.splits.val else "cross-validation" if figures else "nothing: too few rows"
    say(f"scratch: rate {rate:g}, chosen by {by}")
    chosen = controls.scratch_settings(p.settings, p.scratch, rate)
    return [
        arms[rate]
        if seed == p.seeds[0] and rate in arms
        else fit_arm(
            p, controls.untrained(p.source, seed), chosen, seed, start=None, track=track,
            label=f"scratch, seed {seed}",
        )
        for seed in p.seeds
    ]  # fmt: skip


def best_rate(p: Prepared, figures: dict[float, Figures]) -> float:
    """The rate with the best figures; of equal ones the first."""
    best, *others = figures
    for rate in others:
        if improves(figures[rate], figures[best], p.metric):
            best = rate
    return best
