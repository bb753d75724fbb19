"""Plan + Target → settings and a table: every "auto" becomes a value that carries its reason.

The defaults were chosen on validation rows; docs/log.md has the experiments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import ceil, nan
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..compute import distributed
from ..compute.device import choose_device
from ..data.types import Augment
from ..errors import PlanError
from ..evidence.looks import FIRST_LOOK, LOOKS, MOST_SEEDS
from ..plan.schema import Plan, ResolvedFit, ResolvedPlan
from ..runs.result_parts import Block
from ..training.optimizers import optimizer_class
from ..training.schedules import block_rates
from ..training.settings import Settings

if TYPE_CHECKING:
    from ..model.types import Source, Target


Reasons = dict[str, str]  # dotted key → why

# Rates that the optimisers are commonly trained from scratch with.
SCRATCH_RATES = {"SGD": 0.1, "Adam": 1e-3, "AdamW": 1e-3, "NAdam": 1e-3, "RAdam": 1e-3, "RMSprop": 1e-3}

LR_SHARE_OF_SCRATCH = {"image": 0.03, "text": 0.05, "tensor": 0.1}  # of the scratch rate, for kept blocks

DEFAULT_EPOCHS = {"image": 3, "text": 3, "tensor": 10}

FEW_TEXTS = 1_000  # training rows; with fewer a soft head is the better start (docs/log.md)

HEAD_FACTOR = 10.0  # of the head's rate over the backbone's, where the head has far to go

DEFAULT_BATCH_SIZE = {"image": 32, "text": 16, "tensor": 32}

SHARPNESS = {"image": 0.0, "text": 0.1, "tensor": 0.0}  # radius of sharpness-aware minimisation

SOFT_EPOCHS, SOFT_STEPS = (5, 10), 150  # from a soft head: least and most epochs, and steps where these allow

MIN_STEPS = 60  # a fit on a handful of rows still takes this many

MAX_FURTHER_RATES = 2  # of scratch, beyond the outermost, as long as that is the best


@dataclass(frozen=True)
class ScratchBudget:
    """The budget of the scratch control beside that of the fit: a comparison of unequal budgets proves nothing."""

    epochs: int
    patience: int  # 0 without val
    rates: tuple[float, ...]
    fit_epochs: int
    weight_decay: float = 0.0  # usual for the optimiser
    more: Mapping[str, float] = field(default_factory=dict)  # of the fit's settings, tried last
    penalties: tuple[str, ...] = ()  # the fit's that need no source, tried last too

    @property
    def tries(self) -> int:
        """Return the number of fits of the first seed, at most; the best one counts."""
        further = MAX_FURTHER_RATES if len(self.rates) > 1 else 0
        return len(self.rates) + further + bool(self.named)

    def fits(self, seeds: int, folds: int) -> int:
        """Return the number of whole fits, at most.

        On val a try is a fit of the first seed. By ``folds`` it is a fit on the others of each fold, and of no seed.
        """
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


def resolve(
    plan: Plan, source: Source, train_rows: int, *, has_val: bool, one_class: bool = False
) -> tuple[ResolvedPlan, Reasons]:
    """Return the plan without "auto", and the reason of each choice by dotted key.

    ``one_class`` says that each row has one class.
    """
    fit, run = plan.fit, plan.run
    kind, scratch = source.kind, source.nothing_kept
    usual_rate = SCRATCH_RATES.get(fit.optimizer)
    optimizer_class(fit.optimizer)
    reasons: Reasons = dict(plan.reasons)
    settled: dict[str, dict[str, Any]] = {"fit": {}, "run": {}}

    def settle(section: Literal["fit", "run"], key: str, value: Any, why: str) -> Any:
        """Return the plan's value of a key; of "auto" the value given, which is noted with its reason."""
        if (now := getattr(getattr(plan, section), key)) != "auto":
            return now
        reasons[f"{section}.{key}"] = f"auto: {why}"
        settled[section][key] = value
        return value

    if usual_rate is None and "auto" in (fit.scratch_lr, fit.lr, fit.head_lr):
        raise PlanError(
            f"fit.optimizer: no rate is known for {fit.optimizer}: set fit.lr, fit.head_lr and fit.scratch_lr"
        )
    scratch_lr = settle("fit", "scratch_lr", usual_rate, f"usual for {fit.optimizer}")
    share = 1.0 if scratch else LR_SHARE_OF_SCRATCH[kind]
    why = "nothing is kept" if scratch else f"{share:g} of the scratch rate"
    lr = settle("fit", "lr", scratch_lr * share, why)
    few = kind == "text" and one_class and not scratch and train_rows < FEW_TEXTS
    start = settle("fit", "start", *initial_head(plan, few=few))
    far = start != "probe" and not scratch
    why = "its head has far to go" if far else "as the backbone: the probe has fitted it"
    settle("fit", "head_lr", lr * HEAD_FACTOR if far else lr, why)
    batch = min(DEFAULT_BATCH_SIZE[kind], max(4, train_rows // 8))
    batch = settle("fit", "batch_size", batch, f"{train_rows} training rows")
    steps = ceil(train_rows / batch / fit.accumulate)
    epochs = max(DEFAULT_EPOCHS[kind] * (5 if scratch else 1), ceil(MIN_STEPS / steps))
    soft = start == "soft"
    if soft:
        epochs = min(SOFT_EPOCHS[1], max(SOFT_EPOCHS[0], ceil(SOFT_STEPS / steps)))
    settle("fit", "epochs", epochs, f"{epochs * steps} steps of {steps} an epoch")
    pulled = plan.plugins.pulling
    decay, why = (0.0, f"{pulled[0]} pulls to the source") if pulled else default_decay(fit.optimizer)
    settle("fit", "weight_decay", decay, why)
    norms, why = ("train", "nothing is kept") if scratch else ("frozen", "the source's statistics stay")
    settle("fit", "batch_norm", norms, why)
    radius = 0.0 if scratch or soft else SHARPNESS[kind]
    why = "texts overfit within an epoch or two" if radius else "one gradient a step"
    settle("fit", "sharpness", radius, why)

    device, why = choose_device(run.device)
    if run.device == "auto":
        settled["run"]["device"], reasons["run.device"] = str(device), why
    cores = os.cpu_count() or 1
    settle("run", "processes", distributed.launched_world_size(), "as many as were started")
    decoding = kind == "image" and device.type != "cpu"
    why = f"{cores} cores" if decoding else "on a CPU decoding is a small part of a step"
    settle("run", "workers", min(8, cores) if decoding else 0, why)
    settle("run", "threads", torch.get_num_threads(), f"torch's own on {cores} cores")
    if run.seeds == "auto":
        reasons["run.seeds"] = (
            f"{FIRST_LOOK} to {MOST_SEEDS}: the verdict is looked at after each, {LOOKS} times at most"
        )
    if not has_val and plan.fit.patience:
        raise PlanError("fit.patience: there is no val to stop on (too few rows, or data.folds): set 0")
    return ResolvedPlan.of(plan, **settled), reasons


def initial_head(plan: Plan, *, few: bool) -> tuple[str, str]:
    """Return the default of ``fit.start``, and why; ``few`` says that the rows are few texts."""
    needed = [(n, v) for n, r in plan.plugins.regularizers.items() if (v := r.needs_fit().get("start"))]
    if needed:
        return needed[0][1], f"{needed[0][0]} needs it"
    if not few:
        return "probe", "the usual start"
    if all(plan.plugins.freezing(["backbone", "head"], epoch) <= {"head"} for epoch in range(1, 11)):
        return "probe", "the head alone trains"
    return "soft", "few texts: the probe's head leaves no loss to train on"


def default_decay(optimizer: str) -> tuple[float, str]:
    return (0.01, "usual for AdamW") if optimizer == "AdamW" else (1e-4, f"usual for {optimizer}")


def settings(plan: ResolvedPlan, target: Target) -> Settings:
    """Return the settings of a fit.

    Raises PlanError if a kept block's learning rate reaches the scratch rate without leave.
    """
    fit = plan.fit
    names = [b.name for b in target.blocks]
    rates = block_rates(
        names,
        lr=fit.lr,
        head_lr=fit.head_lr,
        layer_decay=1.0 if target.nothing_kept else fit.layer_decay,
        overrides=fit.block_lr,
    )
    scratch = fit.scratch_lr
    large = [n for n in names if rates[n] >= scratch and block_state(target, n) != "fresh"]
    if large and not target.nothing_kept and not fit.allow_large_lr:
        raise PlanError(
            f"fit.lr: {rates[large[-1]]:g} for the kept block {large[-1]} is not below the scratch "
            f"rate {scratch:g} and would destroy what the source knows: lower it, or set "
            f"fit.allow_large_lr = true"
        )
    augment = plan.augment if target.source.kind == "image" else NO_MIX
    same = {f.name: getattr(fit, f.name) for f in fields(Settings) if f.name in ResolvedFit.model_fields}
    return Settings(rates=rates, augment=augment, **same)


def scratch_budget(plan: ResolvedPlan, chosen: Settings, *, has_val: bool) -> ScratchBudget:
    """Return what the scratch control of a plan may spend and try."""
    usual_decay = default_decay(plan.fit.optimizer)[0]
    if plan.plugins.pulling:
        chosen = replace(chosen, weight_decay=usual_decay)  # the fit has none for the pull's sake alone
    usual = {"average": 0.0, "sharpness": 0.0, "weight_decay": usual_decay}
    return ScratchBudget(
        epochs=max(chosen.epochs, ceil(chosen.epochs * plan.evaluate.scratch_budget)),
        patience=max(5, chosen.epochs) if has_val else 0,
        rates=tuple(plan.fit.scratch_lr * f for f in sorted(set(plan.evaluate.scratch_rates))),
        fit_epochs=chosen.epochs,
        weight_decay=usual_decay,
        more={n: value for n, u in usual.items() if (value := getattr(chosen, n)) != u},
        penalties=tuple(name for name, r in plan.plugins.regularizers.items() if not r.uses_source),
    )


NO_MIX = Augment(random_resized_crop=False, flip=False)


def block_state(target: Target, name: str) -> Literal["kept", "fresh", "part kept"]:
    parameters = dict(target.model.named_parameters())
    own = [t for b in target.blocks if b.name == name for t in b.tensors if t in parameters]
    anchored = sum(t in target.anchor for t in own)
    if not anchored:
        return "fresh" if name == "head" or target.nothing_kept or own else "kept"
    return "kept" if anchored == len(own) else "part kept"


def table(plan: ResolvedPlan, target: Target, rates: Mapping[str, float]) -> list[Block]:
    """Return a row a block, which ``regraft plan`` prints before anything trains; no block has drifted yet."""
    names = [b.name for b in target.blocks]
    parameters = dict(target.model.named_parameters())
    epochs, freezing = plan.fit.epochs, plan.plugins.freezing
    first = {name: next((e for e in range(1, epochs + 1) if name in freezing(names, e)), None) for name in names}
    pulled = bool(plan.plugins.pulling)
    return [
        Block(
            name=b.name,
            parameters=sum(parameters[t].numel() for t in b.tensors if t in parameters),
            state=block_state(target, b.name),
            first_epoch=first[b.name],
            rate=rates[b.name],
            over_scratch=rates[b.name] / plan.fit.scratch_lr,
            weight_decay=plan.fit.weight_decay,
            anchored=pulled and any(t in target.anchor for t in b.tensors),
            drift=nan,
        )
        for b in target.blocks
    ]
