"""A model whose weights FSDP2 shards over the ranks while it trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..compute import distributed
from ..compute.fsdp import together

if TYPE_CHECKING:
    from torch import nn

    from .types import Target


@contextmanager
def offloaded(module: nn.Module, so: bool = True) -> Iterator[None]:
    """On the CPU inside, if ``so``, and where it was afterwards; not after an error, which ends the run."""
    some = next(module.parameters(), None)
    where = torch.device("cpu") if some is None else some.device
    if so:
        module.cpu()
    yield
    if so:
        module.to(where)


@contextmanager
def sharded(target: Target, device: torch.device) -> Iterator[Target]:
    """A copy of the target, divided among the processes, to be fitted in its place; afterwards the
    target has the copy's weights and lies on the device. Meanwhile it lies on the CPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.broadcast_model(target.model.to(device))
    model = copy.deepcopy(target.model.cpu()).to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    # a block is fetched as a whole, so each of its outermost modules is divided, then what is left over
    parts = [m for block in outermost(target) for m in map(model.get_submodule, block)]
    parts += [model.get_submodule("backbone"), model.get_submodule("head")]
    for part in dict.fromkeys(parts):
        if not any(True for _ in part.parameters()):
            continue
        # fetched parts are parameters while they last: after any pass the shares are again, which the
        # optimiser and the gradient's norm know
        made: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # a loss is divided by the rows of all processes, so gradients are summed
        made.set_force_sum_reduction_for_comms(True)
        made.set_gradient_divide_factor(1.0)
    yield replace(target, model=model)
    # not after an error, which may be that of one process alone
    target.model.load_state_dict({n: together(t) for n, t in model.state_dict().items()})
    target.model.to(device)


def outermost(target: Target) -> list[list[str]]:
    """Each backbone block's modules that lie in no other of it, hold nothing of another block, and can
    be called."""
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
