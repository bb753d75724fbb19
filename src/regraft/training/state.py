"""The state of a fit: plain numbers and tensors by name, from which it goes on bit for bit.

    model/NAME       weights and buffers         best/NAME             those of the best epoch so far
    average/NAME     the moving average          optimizer/NAME/KEY    the optimizer's, by parameter
    random/DEVICE    torch's generator, which dropout draws from

Order, augmentation and mixing are functions of (seed, epoch, id or step): they have no state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..compute import distributed
from ..compute.fsdp import gather_full_tensors, load_full_state_dict, shard_like
from ..data.ordering import stable
from ..errors import UsageError
from ..model.trainable import set_trainable
from . import optimizers
from .averaging import load_parameters, make_average
from .records import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel

    from ..model.types import Target
    from .records import Saved
    from .settings import FitSpec


@dataclass
class FitState:
    """The model, the optimizer and the progress of a fit under way."""

    target: Target
    spec: FitSpec
    device: torch.device
    average: AveragedModel | None
    progress: Progress = field(default_factory=Progress)
    optimizer: torch.optim.Optimizer | None = None  # None: nothing trains yet
    best: dict[str, Tensor] = field(default_factory=dict)  # weights and buffers of the best epoch, on the CPU

    @classmethod
    def begin(cls, target: Target, spec: FitSpec, device: torch.device) -> FitState:
        """Seed the generator that dropout draws from, and make all ranks' models equal."""
        rank = distributed.rank()
        torch.manual_seed(stable("dropout", spec.seed, rank) if rank else spec.seed)
        distributed.broadcast_model(target.model)
        return cls(target, spec, device, make_average(target.model, spec.settings.average))

    @property
    def model(self) -> nn.Module:
        """Return the model that is fitted."""
        return self.target.model

    def train_blocks(self, wanted: frozenset[str]) -> torch.optim.Optimizer:
        """Let exactly these blocks train, and return an optimizer of them; parameters keep their state."""
        self.optimizer = self._optimizer_of(wanted)
        self.progress.thawed |= dict.fromkeys(wanted - set(self.progress.trainable), self.progress.step)
        self.progress.trainable = sorted(wanted)
        return self.optimizer

    def _optimizer_of(self, wanted: Collection[str]) -> torch.optim.Optimizer:
        settings = self.spec.settings
        set_trainable(self.target, wanted, settings.batch_norm)
        groups = optimizers.groups(self.target, wanted, settings.rates, settings.weight_decay)
        return optimizers.build(settings.optimizer, settings.optimizer_options, groups, before=self.optimizer)

    def count_step(self, terms: Mapping[str, float], micro_batches: int) -> None:
        """Add a step that was taken to the progress and to the moving average."""
        progress = self.progress
        for name, value in terms.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        if self.average is not None:
            self.average.update_parameters(self.model)
        progress.step += 1
        progress.batches += micro_batches
        progress.drawn = {name: p.draws.drawn for name, p in self.spec.penalties.items() if p.draws is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name. Those of the model are no copies, unless its weights are sharded: then
        every rank must call this, and rank 0 gets full tensors on the CPU."""
        found = {f"model/{n}": gather_full_tensors(t) for n, t in self.model.state_dict().items()}
        found |= {f"best/{n}": t for n, t in self.best.items()}
        if self.average is not None:
            found |= {f"average/{n}": p for n, p in self.average.module.named_parameters()}
            found["average"] = self.average.n_averaged
        if self.optimizer is not None:
            for name, p in self.model.named_parameters():
                for key, value in self.optimizer.state.get(p, {}).items():
                    if isinstance(value, torch.Tensor):
                        found[f"optimizer/{name}/{key}"] = gather_full_tensors(value)
                    elif value is not None:  # a number, which torch's own optimizers keep as a tensor
                        found[f"optimizer numbers/{name}/{key}"] = torch.tensor(value)
        found["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["random/cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            found["random/mps"] = torch.mps.get_rng_state()
        return found

    def load(self, saved: Saved) -> None:
        """Load a checkpoint into model, average, optimizer and progress.

        Raises UsageError if the checkpoint is of another model.
        """
        tensors = saved.tensors
        progress = self.progress = Progress(**saved.record["at"])
        self.best = part(tensors, "best")
        try:
            load_full_state_dict(self.model, part(tensors, "model"))
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UsageError(f"the checkpoint is of another model than the plan's: {first}") from error
        if self.average is not None and "average" in tensors:
            kept = part(tensors, "average")
            load_parameters(self.average.module, [kept[n] for n, _ in self.average.module.named_parameters()])
            self.average.n_averaged.copy_(tensors["average"])
        if not progress.trainable:  # no step was taken
            return
        self.optimizer = self._optimizer_of(progress.trainable)
        for group in self.optimizer.param_groups:
            group["lr"] = progress.rates.get(group["block"], group["lr"])
        load_optimizer(self.optimizer, self.model, tensors)

    def load_random(self, saved: Saved) -> None:
        """Restore the positions of the penalties' draws and of torch's generator.

        Call this last: whatever is built before may draw random numbers.
        """
        for name, drawn in self.progress.drawn.items():
            draws = self.spec.penalties[name].draws
            assert draws is not None
            draws.drawn = drawn
        tensors = saved.tensors
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        elif "random/mps" in tensors and self.device.type == "mps":
            torch.mps.set_rng_state(tensors["random/mps"])
        if rank := distributed.rank():  # the checkpoint has rank 0's state
            torch.manual_seed(stable("dropout", self.spec.seed, rank, self.progress.step))


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load an optimizer's state of every parameter from a checkpoint's tensors."""
    parameters = dict(model.named_parameters())
    on_device = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    for path, value in part(tensors, "optimizer").items():
        name, _, key = path.rpartition("/")
        p = parameters[name]
        if key != "step":
            value = match_layout(value, p)
        elif on_device:
            value = value.to(p.device)
        optimizer.state[p][key] = value
    for path, value in part(tensors, "optimizer numbers").items():
        name, _, key = path.rpartition("/")
        optimizer.state[parameters[name]][key] = value.item()


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors below ``name/``, without that prefix."""
    return {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}


def match_layout(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor of an optimizer's state in the memory layout of its parameter, because fused kernels
    take that for granted."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    if distributed.is_sharded(parameter):
        return shard_like(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
