"""The objective of fine-tuning, L(Dt, θ) + λ·R(θ): its gradient over micro-batches, and a step down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING

import torch

from ..compute import distributed
from ..compute.compiling import compiled
from ..compute.device import autocast, to_device
from ..compute.fsdp import full_tensor
from ..compute.fsdp import is_sharded as is_divided
from ..data.preprocessing import mix
from ..errors import DivergedError, shorten
from ..model.cuts import PenaltyForward
from ..regularizers import Batch
from .sam import ascended

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import Inputs
    from ..model.types import Target
    from ..regularizers import Penalty
    from ..tasks import Task
    from .settings import Settings

    LabelledBatch = tuple[tuple[str, ...], Inputs, Tensor]  # ids, inputs [B, …], targets


@dataclass
class SplitFactor:
    """Into how many a micro-batch is divided: more than one where memory did not hold it whole."""

    count: int = 1


@dataclass(frozen=True)
class StepTerms:
    """What a micro-batch, or a piece of one, gave; on the device, where nobody waits for it."""

    ids: tuple[str, ...]
    names: tuple[str, ...]  # of the terms
    terms: Tensor  # [T]


@dataclass(frozen=True)
class Objective:
    target: Target
    task: Task
    penalties: Mapping[str, Penalty]
    settings: Settings
    device: torch.device
    seed: int
    cut: int = 0  # inputs are the output of so many blocks
    say: Callable[[str], None] = lambda line: None
    pieces: SplitFactor = field(default_factory=SplitFactor)

    @cached_property
    def forward(self) -> Callable[[Inputs], tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Inputs → (each block's output where a penalty looks, features, logits); compiled anew by each
        objective, of which there is one for every set of blocks that trains."""
        mapped = any(penalty.maps for penalty in self.penalties.values())
        whole = PenaltyForward(self.target, self.cut, mapped)
        return compiled(whole) if self.settings.compile else whole

    def step(
        self,
        micro_batches: Sequence[LabelledBatch],
        params: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
    ) -> dict[str, float]:
        """One step of the optimiser; → each term's value, of all processes' rows. Raises DivergedError.

        Losses and the gradient's norm are asked for together, once a gradient and before the weights
        move: an accelerator is waited for each time.
        """
        where = (step, epoch, optimizer)
        parts = self.gradient(micro_batches, params, optimizer, epoch, step)
        values: dict[str, float] = {}
        if self.settings.sharpness:
            values, _ = checked(parts, None, *where)
            with ascended(params.values(), self.settings.sharpness):
                parts = self.gradient(micro_batches, params, optimizer, epoch, step)
        # No step is skipped: bfloat16 has the range of float32, so that nothing is scaled that could
        # overflow, and a gradient that is not finite is a fault whatever the precision. Without clipping
        # too, or the weights would be lost, and saved, before the next loss tells.
        gradients = [g for p in params.values() if (g := p.grad) is not None]
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        now, length = checked(parts, norm, *where)
        clip = self.settings.clip_norm
        if clip and length > clip:  # else a pass over all weights would change nothing
            torch.nn.utils.clip_grads_with_norm_(params.values(), clip, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for after in (p.after for p in self.penalties.values() if p.after):
            after(params, rates_of(optimizer, params))
        values = values or now
        return dict(zip(values, distributed.all_reduce_sum(*values.values()), strict=True))

    def gradient(
        self,
        micro_batches: Sequence[LabelledBatch],
        params: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
    ) -> list[StepTerms]:
        """Add the gradient of a step's loss, of all processes' rows, to that of the parameters; → what
        this process's parts of the batches gave.

        Where an accelerator's memory does not hold it, micro-batches are halved from then on, which
        changes no row of the step; batch norms that train see the halves.
        """
        while True:
            try:
                return self._gradient(micro_batches, params, epoch, step)
            except torch.OutOfMemoryError:
                if is_divided(self.target.model):
                    raise  # what follows asks the others, who wait for weights
                rows = distributed.broadcast(max(len(ids) for ids, _, _ in micro_batches))
                if rows < 4 * self.pieces.count:  # no piece is a single row
                    raise
            optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(
                f"step {step}: the memory of {self.device} does not hold {rows // self.pieces.count} rows: from "
                f"now on half as many at a time, accumulated to the same step"
            )
            self.pieces.count *= 2

    def _gradient(
        self, micro_batches: Sequence[LabelledBatch], params: Mapping[str, Tensor], epoch: int, step: int
    ) -> list[StepTerms]:
        (rows,) = distributed.all_reduce_sum(sum(len(ids) for ids, _, _ in micro_batches))
        found: list[StepTerms] = []
        full = ""  # what an accelerator said whose memory did not hold a part
        try:
            for part, (ids, inputs, targets) in enumerate(self._mixed(micro_batches, epoch, step)):
                with autocast(self.device, self.settings.precision):
                    maps, features, logits = self.forward(inputs)
                    features, logits = features.float(), logits.float()  # [B, D], [B, C]
                batch = Batch(step, ids, params, inputs, features, logits, targets, maps)
                # a row without an id does not count: this process had none left, and runs for the others
                terms = {"task": self.task.loss(logits, targets)[: len(ids)].sum() / rows}
                for name, penalty in self.penalties.items():
                    if penalty.per == "batch":
                        with autocast(self.device, self.settings.precision):  # as what it compares with
                            term = penalty.term(batch)
                        terms[name] = term * (len(ids) / rows)
                    elif part == 0:  # a penalty on θ counts once a step
                        terms[name] = penalty.term(batch) / distributed.world_size()
                stacked = torch.stack(list(terms.values()))
                stacked.sum().backward()  # type: ignore[no-untyped-call]
                found.append(StepTerms(ids, tuple(terms), stacked.detach()))
        except torch.OutOfMemoryError as error:
            if is_divided(self.target.model):  # the others wait for weights, not for a word
                raise
            full = str(error) or "out of memory"
        # where one process cannot go on, none does
        if distributed.any_rank(bool(full)):
            raise torch.OutOfMemoryError(full or "out of memory in another process")
        distributed.sum_gradients(params.values())
        return found

    def _mixed(self, micro_batches: Sequence[LabelledBatch], epoch: int, step: int) -> Iterator[LabelledBatch]:
        """The micro-batches mixed, in pieces, on the device."""
        augment, layout = self.settings.augment, self.settings.layout
        for part, (ids, inputs, targets) in enumerate(micro_batches):
            key = (self.seed, epoch, step * self.settings.accumulate + part)
            inputs, targets = mix(inputs, targets, self.task.outputs, augment, *key)
            for rows in split_slices(len(targets), self.pieces.count):
                x = {k: v[rows] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
                yield ids[rows], to_device(x, self.device, layout), targets[rows].to(self.device)


def checked(
    parts: Sequence[StepTerms], norm: Tensor | None, step: int, epoch: int, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, float], float]:
    """Each term's sum over the parts, and the gradient's norm, or 0.

    Raises DivergedError, with the rates of ``optimizer``, where a loss, of any process, or the norm is
    not finite.
    """
    losses = [part.terms.sum(0, keepdim=True) for part in parts]
    flat = torch.cat([p.terms for p in parts] + losses + ([] if norm is None else [norm.view(1)]))
    numbers: list[float] = flat.tolist()  # here the device is waited for
    values: dict[str, float] = {}
    given = iter(numbers)
    for part in parts:
        for name in part.names:
            values[name] = values.get(name, 0.0) + next(given)
    spoilt = [part for part in parts if not isfinite(next(given))]
    if distributed.any_rank(bool(spoilt)):
        rows = distributed.gather_objects([i for part in spoilt for i in part.ids])
        raise check_diverged("loss", step, epoch, tuple(rows), optimizer)
    length = next(given, 0.0)
    if not isfinite(length):
        raise check_diverged("gradient", step, epoch, parts[0].ids, optimizer)
    return values, length


def split_slices(rows: int, pieces: int) -> list[slice]:
    """``rows`` in about equal pieces, none of a single row."""
    pieces = min(pieces, max(1, rows // 2))
    return [slice(i * rows // pieces, (i + 1) * rows // pieces) for i in range(pieces)]


def rates_of(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> dict[str, float]:
    """The rate that each parameter, by name, was last stepped with."""
    rate = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: rate[id(p)] for name, p in params.items()}


def check_diverged(
    what: str, step: int, epoch: int, ids: tuple[str, ...], optimizer: torch.optim.Optimizer
) -> DivergedError:
    rates = {g["block"]: g["lr"] for g in optimizer.param_groups}
    return DivergedError(
        f"the {what} is not finite at step {step} (epoch {epoch}; rows {shorten(list(ids))}; rates "
        f"{min(rates.values()):.2g} to {max(rates.values()):.2g}): lower fit.lr and fit.head_lr, or "
        f"look at these rows"
    )
