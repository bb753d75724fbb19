"""Learning-rate range test: the rate at which training breaks.

All blocks' rates are multiplied by one factor that grows geometrically step by step. The training loss falls,
then rises. Smith 2017, https://arxiv.org/abs/1506.01186, section 3.3. The loss is smoothed by a moving average
with decay 0.9, divided by 1 − 0.9^steps. The test ends when the smoothed loss is WORSE times the least one, or
not finite.

The test reads train alone. It restores weights, statistics, modes and the random generator. It shows where
training breaks, not which rate generalises best. The usual choice is a tenth of the rate with the least loss.
A start that has fitted the rows already, as the probe's head may have, leaves nothing to fall. The least loss then
lies at the lowest rates by chance, and the test names no rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count, islice
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

import torch

from ..compute.malloc import freed_memory_kept
from ..errors import DivergedError, UsageError
from ..io.log import LOGGER
from ..model.trainable import set_trainable
from ..model.weights import restore, snapshot
from ..pipeline.arms import adapted
from ..pipeline.job import fit_start
from ..pipeline.prepare import prepare
from ..training import optimizers
from ..training.loop import group_batches
from ..training.objective import Objective
from ..training.records import FitData
from ..training.settings import FitSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..compute.device import Compute
    from ..model.types import Target
    from ..plan.schema import Plan


DECAY, WORSE = 0.9, 4.0  # of the moving average; the loss over the least one at which the test ends

LOW, HIGH = 1e-2, 1e3  # factors on the plan's rates

LEAST_FALL = 0.1  # of the loss at the lowest rates; with less the test cannot tell

NOISE_OF_SMOOTHED = 3 * ((1 - DECAY) / (1 + DECAY)) ** 0.5  # three standard deviations, over that of one loss


@dataclass(frozen=True)
class Sweep:
    """The factors on the plan's rates, which grow geometrically step by step."""

    steps: int
    low: float = LOW
    high: float = HIGH

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.low < self.high:
            raise UsageError("a range test takes 2 steps or more, from a factor above 0 to a larger one")

    def factor(self, step: int) -> float:
        """Return the factor at ``step``, from 0."""
        factor: float = self.low * (self.high / self.low) ** (step / (self.steps - 1))
        return factor


@dataclass(frozen=True)
class Tried:
    """A step of the test."""

    factor: float  # on the plan's rates
    lr: float  # of the block nearest to the head
    loss: float
    smoothed: float


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test."""

    tried: list[Tried]
    least: Tried  # the step with the least smoothed loss
    broke: float | None  # the rate at which training diverged; None: at no rate of the test
    head_share: float  # the head's rate over that of the block nearest to it
    fell: bool  # whether the loss fell by more than LEAST_FALL and its noise; else the test cannot tell


def range_test(target: Target, data: FitData, spec: FitSpec, compute: Compute, sweep: Sweep) -> RangeTest:
    """Train on ``data.train`` with rates that rise step by step, then restore the target.

    The blocks of the epoch in which most blocks train are trained. Raises UsageError if the first loss is not
    finite.
    """
    settings, freezing = spec.settings, spec.freezing
    blocks = [b.name for b in target.blocks]
    backbone = blocks[-2] if len(blocks) > 1 else blocks[-1]
    trains = max((freezing(blocks, e) for e in range(1, settings.epochs + 1)), key=len)
    before, state = snapshot(target), torch.get_rng_state()
    modes = {m: m.training for m in target.model.modules()}
    learns = {p: p.requires_grad for p in target.model.parameters()}
    torch.manual_seed(spec.seed)
    tried: list[Tried] = []
    mean, broke = 0.0, None
    try:
        model = compute.move_model(target.model)
        set_trainable(target, trains, settings.batch_norm)
        groups = optimizers.groups(target, trains, settings.rates, settings.weight_decay)
        optimizer = optimizers.build(settings.optimizer, settings.optimizer_options, groups)
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        objective = Objective(target, spec, compute)
        batches = (
            (epoch, micro)
            for epoch in count(1)
            for micro in group_batches(data.train.epoch(epoch), settings.accumulate)
        )
        for step, (epoch, micro) in enumerate(islice(batches, sweep.steps)):
            factor = sweep.factor(step)
            for group in optimizer.param_groups:
                group["lr"] = settings.rates[group["block"]] * factor
            lr = settings.rates[backbone] * factor
            try:
                values = objective.step(micro, params, optimizer, epoch, step)
            except DivergedError:
                broke = lr
                break
            loss = sum(values.values())
            mean = DECAY * mean + (1 - DECAY) * loss
            smoothed = mean / (1 - DECAY ** (step + 1))
            tried.append(Tried(factor, lr, loss, smoothed))
            if smoothed > WORSE * min(t.smoothed for t in tried):
                broke = lr
                break
    finally:
        restore(target, before)
        for module, mode in modes.items():
            module.training = mode
        for parameter, learn in learns.items():
            parameter.requires_grad_(learn)
            parameter.grad = None
        torch.set_rng_state(state)
    if not tried:
        raise UsageError(f"the loss is not finite at {sweep.low:g} times the plan's rates: lower fit.lr")
    least = min(tried, key=lambda t: t.smoothed)
    return RangeTest(tried, least, broke, settings.rates["head"] / settings.rates[backbone], fell(tried, least))


def fell(tried: Sequence[Tried], least: Tried) -> bool:
    """Return whether the least smoothed loss is below the losses at the lowest rates, the first tenth of the steps."""
    first = [t.loss for t in tried[: max(5, len(tried) // 10)]]
    start = fmean(first)
    return bool(start - least.smoothed > max(LEAST_FALL * start, NOISE_OF_SMOOTHED * pstdev(first)))


@freed_memory_kept()
def run_range_test(plan: Plan, steps: int) -> RangeTest:
    """Run the range test of a plan's first seed, from the starting point of its fit."""
    sweep = Sweep(steps)
    job = prepare(plan)
    start = None
    if not job.source.nothing_kept and job.plan.fit.start != "random":
        LOGGER.info("features and linear probe, where the fit starts")
        start = fit_start(job.outputs.probe_features(), job.data, job.plan).head
    target = job.initial_target(job.source, job.seeds[0], start)
    LOGGER.info("%d steps with rates from %g to %g times the plan's", steps, LOW, HIGH)
    rows = job.data.train_rows()
    penalties = {n: r.prepare(target, job.source_data, rows) for n, r in job.plan.plugins.regularizers.items()}
    with adapted(job.spec.freezing, target, job.seeds[0]) as tested:
        data = FitData(job.data.batches("train", seed=job.seeds[0], train=True))
        return range_test(tested, data, replace(job.spec, penalties=penalties), job.compute, sweep)


def format_range_test(found: RangeTest) -> str:
    """Return the curve as lines for the terminal, and the rates to choose."""
    top = max(t.smoothed for t in found.tried) or 1.0
    every = max(1, len(found.tried) // 20)
    lines = ["      rate      loss   smoothed"]
    for i, t in enumerate(found.tried):
        if i % every == 0 or t is found.least or t is found.tried[-1]:
            mark = "→" if t is found.least else " "
            bar = "█" * round(30 * t.smoothed / top)
            lines.append(f"{mark} {t.lr:>8.2g}   {t.loss:>7.4f}   {t.smoothed:>7.4f}  {bar}")
    lr = found.least.lr / 10
    ends = "at no rate of the test" if found.broke is None else f"at {found.broke:.2g}"
    if not found.fell:
        lines.append(
            f"The loss fell at none of these rates, and training diverged {ends}. This test cannot tell which rate to "
            "choose: the start has fitted the rows already. Keep the plan's rates, or test from a random head: "
            "--set fit.start=random"
        )
        return "\n".join(lines)
    lines.append(
        f"The smoothed training loss is least at {found.least.lr:.2g}. Training diverged {ends}. "
        f"The usual choice is a tenth of the rate with the least loss: --lr {lr:.2g} "
        f"--head-lr {lr * found.head_share:.2g}. Compare rates on val."
    )
    return "\n".join(lines)
