"""Where a fit stands: plain numbers and tensors by name, from which it goes on bit for bit.

    model/NAME       weights and buffers         best/NAME             those of the best epoch so far
    average/NAME     the moving average          optimizer/NAME/KEY    the optimiser's, by parameter
    random/DEVICE    torch's generator, which dropout draws from

Order, augmentation and mixing are functions of (seed, epoch, id or step): they have no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..compute.distributed import is_sharded
from ..compute.fsdp import gather_full_tensors, load_full_state_dict, shard_of
from ..errors import UsageError
from ..model.trainable import set_trainable
from . import optimizers
from .averaging import put
from .records import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel

    from ..model.types import Target
    from .records import Saved
    from .settings import Settings


def tensors_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    average: AveragedModel | None,
    best: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Tensor]:
    """Everything but the plain numbers; of the model itself no copies, unless its weights are divided:
    then all processes must ask, and the first is given whole tensors on the CPU."""
    found = {f"model/{n}": gather_full_tensors(t) for n, t in model.state_dict().items()}
    found |= {f"best/{n}": t for n, t in best.items()}
    if average is not None:
        found |= {f"average/{n}": p for n, p in average.module.named_parameters()}
        found["average"] = average.n_averaged
    if optimizer is not None:
        for name, p in model.named_parameters():
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, torch.Tensor):
                    found[f"optimizer/{name}/{key}"] = gather_full_tensors(value)
                elif value is not None:  # torch's own keep tensors
                    found[f"optimizer numbers/{name}/{key}"] = torch.tensor(value)
    found["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        found["random/cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["random/mps"] = torch.mps.get_rng_state()
    return found


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}


def put_back(
    saved: Saved, target: Target, settings: Settings, average: AveragedModel | None
) -> tuple[Progress, torch.optim.Optimizer | None, dict[str, Tensor]]:
    """Model and average as they were; → (the plain numbers, the optimiser, the best weights).

    Raises UsageError where they are of another model.
    """
    model, tensors = target.model, saved.tensors
    at = Progress(**saved.record["at"])
    try:
        load_full_state_dict(model, part(tensors, "model"))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UsageError(f"the checkpoint is of another model than the plan's: {first}") from error
    if average is not None and "average" in tensors:
        kept = part(tensors, "average")
        put(average.module, [kept[n] for n, _ in average.module.named_parameters()])
        average.n_averaged.copy_(tensors["average"])
    if not at.trainable:  # not one step was taken
        return at, None, part(tensors, "best")
    set_trainable(target, at.trainable, settings.batch_norm)
    groups = optimizers.groups(target, at.trainable, settings.rates, settings.weight_decay)
    optimizer = optimizers.build(settings.optimizer, settings.optimizer_options, groups)
    for group in optimizer.param_groups:
        group["lr"] = at.rates.get(group["block"], group["lr"])
    parameters = dict(model.named_parameters())
    on_device = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    for path, value in part(tensors, "optimizer").items():
        name, _, key = path.rpartition("/")
        p = parameters[name]
        if key != "step":
            value = like(value, p)
        elif on_device:
            value = value.to(p.device)
        optimizer.state[p][key] = value
    for path, value in part(tensors, "optimizer numbers").items():
        name, _, key = path.rpartition("/")
        optimizer.state[parameters[name]][key] = value.item()
    return at, optimizer, part(tensors, "best")


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of an optimiser's state in the memory layout of its parameter, which fused kernels
    take for granted."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    if is_sharded(parameter):
        return shard_of(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def put_random_back(saved: Saved, device: torch.device) -> None:
    """Last of all before the loop goes on: whatever was built before may have drawn."""
    tensors = saved.tensors
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
    elif "random/mps" in tensors and device.type == "mps":
        torch.mps.set_rng_state(tensors["random/mps"])
