"""The objective of fine-tuning, L(Dt, θ) + λ·R(θ): its gradient over micro-batches, and a step down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from . import processes
from .errors import DivergedError, shorten
from .features import autocast, on
from .preprocess import mix
from .sharpness import ascended
from .types import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .loop import Settings
    from .types import Inputs, Penalty, Target, Task

    LabelledBatch = tuple[tuple[str, ...], Inputs, Tensor]  # ids, inputs [B, …], targets


@dataclass
class Pieces:
    """Into how many a micro-batch is divided: more than one where memory did not hold it whole."""

    count: int = 1


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
    pieces: Pieces = field(default_factory=Pieces)

    def step(
        self,
        micro_batches: Sequence[LabelledBatch],
        params: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
    ) -> dict[str, float]:
        """One step of the optimiser; → each term's value, of all processes' rows. Raises DivergedError."""
        values = self.gradient(micro_batches, params, optimizer, epoch, step)
        if self.settings.sharpness:
            with ascended(params.values(), self.settings.sharpness):
                self.gradient(micro_batches, params, optimizer, epoch, step)
        # No step is skipped: bfloat16 has the range of float32, so that nothing is scaled that could
        # overflow, and a gradient that is not finite is a fault whatever the precision. Without clipping
        # too, or the weights would be lost, and saved, before the next loss tells.
        gradients = [g for p in params.values() if (g := p.grad) is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise diverged("gradient", step, epoch, micro_batches[0][0], optimizer)
        clip = self.settings.clip_norm
        if clip and norm > clip:  # else a pass over all weights would change nothing
            torch.nn.utils.clip_grads_with_norm_(params.values(), clip, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for after in (p.after for p in self.penalties.values() if p.after):
            after(params, rates_of(optimizer, params))
        return dict(zip(values, processes.total(*values.values()), strict=True))

    def gradient(
        self,
        micro_batches: Sequence[LabelledBatch],
        params: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
    ) -> dict[str, float]:
        """Add the gradient of a step's loss, of all processes' rows, to that of the parameters; → each
        term's value, of this process's rows.

        Where an accelerator's memory does not hold it, micro-batches are halved from then on, which
        changes no row of the step; batch norms that train see the halves.

        Raises DivergedError, with the rates of ``optimizer``, for a loss that is not finite.
        """
        while True:
            try:
                return self._gradient(micro_batches, params, optimizer, epoch, step)
            except torch.OutOfMemoryError:
                rows = processes.told(max(len(ids) for ids, _, _ in micro_batches))
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
        self,
        micro_batches: Sequence[LabelledBatch],
        params: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
    ) -> dict[str, float]:
        backbone = self.target.model.get_submodule("backbone")
        head = self.target.model.get_submodule("head")
        blocks = [b.name for b in self.target.blocks]
        mapped = any(penalty.maps for penalty in self.penalties.values())
        (rows,) = processes.total(sum(len(ids) for ids, _, _ in micro_batches))
        values: dict[str, float] = {}
        spoilt: tuple[str, ...] = ()  # rows whose loss is not finite
        full = ""  # what an accelerator said whose memory did not hold a part
        try:
            for part, (ids, inputs, targets) in enumerate(self._mixed(micro_batches, epoch, step)):
                with autocast(self.device, self.settings.precision):
                    maps = block_outputs(self.target, backbone, inputs) if mapped else {}
                    if mapped:
                        features = maps[blocks[-2]]  # [B, D]
                    elif self.cut:
                        features = from_cut(self.target, inputs, self.cut)
                    else:
                        features = backbone(inputs)
                    features, logits = features.float(), head(features).float()  # [B, D], [B, C]
                batch = Batch(step, ids, params, inputs, features, logits, targets, maps)
                # a row without an id does not count: this process had none left, and runs for the others
                terms = {"task": self.task.loss(logits, targets)[: len(ids)].sum() / rows}
                for name, penalty in self.penalties.items():
                    if penalty.per == "batch":
                        with autocast(
                            self.device, self.settings.precision
                        ):  # as what it compares with
                            term = penalty.term(batch)
                        terms[name] = term * (len(ids) / rows)
                    elif part == 0:  # a penalty on θ counts once a step
                        terms[name] = penalty.term(batch) / processes.size()
                loss = torch.stack(list(terms.values())).sum()
                if not torch.isfinite(loss):
                    spoilt = ids
                    break
                loss.backward()  # type: ignore[no-untyped-call]
                for name, term in terms.items():
                    values[name] = values.get(name, 0.0) + float(term.detach())
        except torch.OutOfMemoryError as error:
            full = str(error) or "out of memory"
        # where one process cannot go on, none does
        bad, short = processes.total(float(bool(spoilt)), float(bool(full)))
        if short:
            raise torch.OutOfMemoryError(full or "out of memory in another process")
        if bad:
            raise diverged("loss", step, epoch, tuple(processes.gathered(list(spoilt))), optimizer)
        processes.sum_gradients(params.values())
        return values

    def _mixed(
        self, micro_batches: Sequence[LabelledBatch], epoch: int, step: int
    ) -> Iterator[LabelledBatch]:
        """The micro-batches mixed, in pieces, on the device."""
        augment, layout = self.settings.augment, self.settings.layout
        for part, (ids, inputs, targets) in enumerate(micro_batches):
            key = (self.seed, epoch, step * self.settings.accumulate + part)
            inputs, targets = mix(inputs, targets, self.task.outputs, augment, *key)
            for rows in divided(len(targets), self.pieces.count):
                x = (
                    {k: v[rows] for k, v in inputs.items()}
                    if isinstance(inputs, dict)
                    else inputs[rows]
                )
                yield ids[rows], on(x, self.device, layout), targets[rows].to(self.device)


def divided(rows: int, pieces: int) -> list[slice]:
    """``rows`` in about equal pieces, none of a single row."""
    pieces = min(pieces, max(1, rows // 2))
    return [slice(i * rows // pieces, (i + 1) * rows // pieces) for i in range(pieces)]


class Above(torch.nn.Module):
    """What lies above a cut, as a module: the output of the first ``cut`` blocks → logits [B, C]."""

    def __init__(self, target: Target, cut: int) -> None:
        super().__init__()
        self.model = target.model
        self.target, self.cut = target, cut

    def forward(self, x: Any) -> Tensor:
        head = self.model.get_submodule("head")
        return head(from_cut(self.target, x, self.cut))  # type: ignore[no-any-return]


def from_cut(target: Target, x: Any, cut: int) -> Tensor:
    """Features [B, D] from the output of the first ``cut`` blocks."""
    backbone = target.model.get_submodule("backbone")
    for block in target.blocks[cut:-1]:
        assert block.run is not None
        x = block.run(backbone, x)
    found: Tensor = x
    return found


def block_outputs(target: Target, backbone: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Each backbone block's output; the last one's are the features."""
    found: dict[str, Any] = {}
    x: Any = inputs
    for block in target.blocks[:-1]:
        assert block.run is not None
        x = found[block.name] = block.run(backbone, x)
    return found


def rates_of(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> dict[str, float]:
    """The rate that each parameter, by name, was last stepped with."""
    rate = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: rate[id(p)] for name, p in params.items()}


def diverged(
    what: str, step: int, epoch: int, ids: tuple[str, ...], optimizer: torch.optim.Optimizer
) -> DivergedError:
    rates = {g["block"]: g["lr"] for g in optimizer.param_groups}
    return DivergedError(
        f"the {what} is not finite at step {step} (epoch {epoch}; rows {shorten(list(ids))}; rates "
        f"{min(rates.values()):.2g} to {max(rates.values()):.2g}): lower fit.lr and fit.head_lr, or "
        f"look at these rows"
    )
