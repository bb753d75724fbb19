"""The objective of fine-tuning, L(Dt, θ) + λ·R(θ): its gradient over micro-batches, and a step down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING

import torch

from ..compute import distributed
from ..compute.arrays import map_inputs
from ..compute.compiling import compile_module
from ..compute.fsdp import full_tensor, has_shards
from ..data.preprocessing import mix
from ..errors import DivergedError, shorten
from ..model.cuts import PenaltyForward
from ..regularizers import Batch
from .sam import ascend

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import Inputs
    from ..compute.device import Compute
    from ..data.batches import LabelledBatch
    from ..model.types import Target
    from .settings import FitSpec


@dataclass
class SplitFactor:
    """The number of slices of a micro-batch; above 1 if the device's memory did not hold it whole."""

    count: int = 1


@dataclass(frozen=True)
class Objective:
    """The sum of the task's loss and the penalties, for one set of trainable blocks."""

    target: Target
    spec: FitSpec
    compute: Compute
    cut: int = 0  # inputs are the output of so many blocks
    note: Callable[[str], None] = lambda line: None
    slices: SplitFactor = field(default_factory=SplitFactor)  # shared by copies for other blocks

    @cached_property
    def forward(self) -> Callable[[Inputs], tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Return the function from inputs to (each block's output if a penalty needs it, features, logits).

        Every objective compiles it anew, because the set of trainable blocks is part of the graph.
        """
        mapped = any(penalty.maps for penalty in self.spec.penalties.values())
        whole = PenaltyForward(self.target, self.cut, mapped)
        return compile_module(whole) if self.compute.compile else whole

    def step(
        self,
        micro_batches: Sequence[LabelledBatch],
        params: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
    ) -> dict[str, float]:
        """Take one step of the optimizer, and return each term's value over the rows of all ranks.

        Losses and gradient norm are read in one device-to-host copy, before the optimizer steps: each copy
        synchronises the device. Raises DivergedError.
        """
        settings, place = self.spec.settings, StepPlace(step, epoch, optimizer)
        parts = self.gradient(micro_batches, params, place)
        values: dict[str, float] = {}
        if settings.sharpness:
            values, _ = read_finite(parts, None, place)
            with ascend(params.values(), settings.sharpness):
                parts = self.gradient(micro_batches, params, place)
        # No step is skipped. bfloat16 has the range of float32, so no loss is scaled and none can overflow: a
        # gradient that is not finite is a fault in any precision. It is checked without clipping too, because
        # the weights would be lost, and saved, before the next loss shows it.
        gradients = [g for p in params.values() if (g := p.grad) is not None]
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        now, length = read_finite(parts, norm, place)
        if settings.clip_norm and length > settings.clip_norm:  # else a pass over all weights changes nothing
            torch.nn.utils.clip_grads_with_norm_(params.values(), settings.clip_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for after in (p.after for p in self.spec.penalties.values() if p.after):
            after(params, rates_of(optimizer, params))
        values = values or now
        return dict(zip(values, distributed.all_reduce_sum(*values.values()), strict=True))

    def gradient(
        self, micro_batches: Sequence[LabelledBatch], params: Mapping[str, Tensor], place: StepPlace
    ) -> list[StepTerms]:
        """Add the gradient of a step's loss, over the rows of all ranks, to that of the parameters.

        Return the terms of this rank's rows. If an accelerator's memory does not hold a micro-batch, this and
        all later ones are halved. That changes no row of the step, but batch norms that train see the halves.
        """
        while True:
            try:
                return self._gradient(micro_batches, params, place)
            except torch.OutOfMemoryError:
                if has_shards(self.target.model):
                    raise  # the collectives below would wait for ranks that wait for weights
                rows = distributed.broadcast(max(len(ids) for ids, _, _ in micro_batches))
                if rows < 4 * self.slices.count:  # no slice is a single row
                    raise
            place.optimizer.zero_grad(set_to_none=True)
            if self.compute.device.type == "cuda":
                torch.cuda.empty_cache()
            self.note(
                f"step {place.step}: the memory of {self.compute.device} does not hold {rows // self.slices.count} "
                f"rows; from now on half as many are computed at a time and accumulated to the same step"
            )
            self.slices.count *= 2

    def _gradient(
        self, micro_batches: Sequence[LabelledBatch], params: Mapping[str, Tensor], place: StepPlace
    ) -> list[StepTerms]:
        (rows,) = distributed.all_reduce_sum(sum(len(ids) for ids, _, _ in micro_batches))
        parts: list[StepTerms] = []
        out_of_memory = ""  # the device's message
        try:
            for number, batch in enumerate(self._mix(micro_batches, place)):
                parts.append(self._backward(batch, params, place.step, rows, first=number == 0))
        except torch.OutOfMemoryError as error:
            if has_shards(self.target.model):  # other ranks wait for weights, not for a message
                raise
            out_of_memory = str(error) or "out of memory"
        # all ranks must stop together, or the others hang in a collective
        if distributed.any_rank(bool(out_of_memory)):
            raise torch.OutOfMemoryError(out_of_memory or "out of memory in another process")
        distributed.sum_gradients(params.values())
        return parts

    def _backward(
        self, labelled: LabelledBatch, params: Mapping[str, Tensor], step: int, rows: float, *, first: bool
    ) -> StepTerms:
        """Add one slice's gradient; ``rows`` are those of the whole step on all ranks."""
        ids, inputs, targets = labelled
        with self.compute.autocast():
            maps, features, logits = self.forward(inputs)
            features, logits = features.float(), logits.float()  # [B, D], [B, C]
        batch = Batch(step, ids, params, inputs, features, logits, targets, maps)
        # padding rows have no id: this rank ran out of rows, but must join the collective
        terms = {"task": self.spec.task.loss(logits, targets)[: len(ids)].sum() / rows}
        for name, penalty in self.spec.penalties.items():
            if penalty.per == "batch":
                with self.compute.autocast():  # a penalty compares with outputs of this precision
                    term = penalty.term(batch)
                terms[name] = term * (len(ids) / rows)
            elif first:  # a penalty on θ counts once a step
                terms[name] = penalty.term(batch) / distributed.world_size()
        stacked = torch.stack(list(terms.values()))
        stacked.sum().backward()  # type: ignore[no-untyped-call]
        return StepTerms(ids, tuple(terms), stacked.detach())

    def _mix(self, micro_batches: Sequence[LabelledBatch], place: StepPlace) -> Iterator[LabelledBatch]:
        """Yield slices of the micro-batches, after MixUp and CutMix, on the device."""
        settings = self.spec.settings
        for number, (ids, inputs, targets) in enumerate(micro_batches):
            key = (self.spec.seed, place.epoch, place.step * settings.accumulate + number)
            inputs, targets = mix(inputs, targets, self.spec.task.outputs, settings.augment, *key)
            for rows in split_slices(len(targets), self.slices.count):
                part = map_inputs(lambda x, rows=rows: x[rows], inputs)  # type: ignore[misc]
                yield ids[rows], self.compute.to_device(part), targets[rows].to(self.compute.device)


def split_slices(rows: int, slices: int) -> list[slice]:
    """Split ``rows`` into about equal slices, none of a single row."""
    slices = min(slices, max(1, rows // 2))
    return [slice(i * rows // slices, (i + 1) * rows // slices) for i in range(slices)]


def rates_of(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the rate that each parameter, by name, was last stepped with."""
    rate = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: rate[id(p)] for name, p in params.items()}


# ---------------------------------------------------------------- the numbers of a step


@dataclass(frozen=True)
class StepTerms:
    """Loss terms of one micro-batch, or of a slice of one. They stay on the device to avoid a host sync."""

    ids: tuple[str, ...]
    names: tuple[str, ...]  # of the terms
    terms: Tensor  # [T]


@dataclass(frozen=True)
class StepPlace:
    """The place of a step in the fit, and its rates, for messages."""

    step: int
    epoch: int
    optimizer: torch.optim.Optimizer

    def diverged(self, name: str, ids: Sequence[str]) -> DivergedError:
        """Return the error of a number that is not finite: "loss" or "gradient"."""
        rates = {g["block"]: g["lr"] for g in self.optimizer.param_groups}
        return DivergedError(
            f"the {name} is not finite at step {self.step} (epoch {self.epoch}; rows {shorten(list(ids))}; rates "
            f"{min(rates.values()):.2g} to {max(rates.values()):.2g}): lower fit.lr and fit.head_lr, or "
            f"look at these rows"
        )


def read_finite(parts: Sequence[StepTerms], norm: Tensor | None, place: StepPlace) -> tuple[dict[str, float], float]:
    """Return each term's sum over the parts, and the gradient's norm (0 without one).

    Raises DivergedError if a loss, on any rank, or the norm is not finite.
    """
    losses = [part.terms.sum(0, keepdim=True) for part in parts]
    flat = torch.cat([p.terms for p in parts] + losses + ([] if norm is None else [norm.view(1)]))
    numbers = iter(flat.tolist())  # the one synchronisation with the device
    sums: dict[str, float] = {}
    for part in parts:
        for name in part.names:
            sums[name] = sums.get(name, 0.0) + next(numbers)
    diverged = [part for part in parts if not isfinite(next(numbers))]
    if distributed.any_rank(bool(diverged)):
        raise place.diverged("loss", distributed.gather_objects([i for part in diverged for i in part.ids]))
    length: float = next(numbers, 0.0)
    if not isfinite(length):
        raise place.diverged("gradient", parts[0].ids)
    return sums, length
