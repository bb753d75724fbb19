"""Models whose weights FSDP2 shards over the ranks while they train."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..compute import distributed
from ..compute.fsdp import full_tensor_on_cpu

if TYPE_CHECKING:
    from torch import nn

    from .types import Target


@contextmanager
def offloaded(module: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Move a module to the CPU inside the block, if ``enabled``, and back afterwards, but not after an exception."""
    some = next(module.parameters(), None)
    device = torch.device("cpu") if some is None else some.device
    if enabled:
        module.cpu()
    yield
    if enabled:
        module.to(device)


@contextmanager
def sharded(target: Target, device: torch.device) -> Iterator[Target]:
    """Yield a sharded copy of the target, to be fitted in its place.

    The target lies on the CPU inside the block. Afterwards it has the copy's weights and lies on the device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.broadcast_model(target.model.to(device))
    model = copy.deepcopy(target.model.cpu()).to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    # FSDP gathers a module as a whole, so shard each block's outermost modules, then all remaining parameters
    parts = [m for block in outermost_modules(target) for m in map(model.get_submodule, block)]
    parts += [model.get_submodule("backbone"), model.get_submodule("head")]
    for part in dict.fromkeys(parts):
        if not any(True for _ in part.parameters()):
            continue
        # gathered weights replace the sharded parameters, so reshard after every pass: the optimizer and the
        # gradient's norm know the sharded ones
        made: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # each loss is divided by the rows of all ranks, so gradients are summed
        made.set_force_sum_reduction_for_comms(True)
        made.set_gradient_divide_factor(1.0)
    yield replace(target, model=model)
    # not after an error, which may be one rank's alone: the others would wait
    target.model.load_state_dict({n: full_tensor_on_cpu(t) for n, t in model.state_dict().items()})
    target.model.to(device)


def outermost_modules(target: Target) -> list[list[str]]:
    """Return each backbone block's outermost modules that can be called and hold nothing of another block."""
    from torch.nn import ModuleDict, ModuleList

    found = []
    for block in target.blocks[:-1]:
        others = [m for b in target.blocks if b.name != block.name for m in b.modules]
        own = [
            name
            for name in block.modules
            if not isinstance(target.model.get_submodule(name), ModuleList | ModuleDict)
            and not any(other.startswith(f"{name}.") for other in others)
        ]
        found.append([n for n in own if not any(n.startswith(f"{m}.") for m in own)])
    return found
