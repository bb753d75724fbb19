"""Weights divided among the processes while they train: torch's FSDP2.

Each process holds its share of the weights, of their gradients and of the optimiser's state; the rest
of a block is fetched for as long as the block computes. Every process takes part in every forward pass.

What is left of a fit, from the frontier on, has the whole weights on each device again, but neither
gradients nor an optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from . import distributed

if TYPE_CHECKING:
    from torch import Tensor, nn


def full_tensor(tensor: Tensor) -> Tensor:
    """A divided tensor put together, for which all processes must ask; another one as it is."""
    held: Any = tensor
    together: Tensor = held.full_tensor() if distributed.is_sharded(tensor) else tensor
    return together


def together(tensor: Tensor) -> Tensor:
    """A divided tensor put together on the CPU, so that a device holds one at a time; another as it is."""
    return full_tensor(tensor.detach()).cpu() if distributed.is_sharded(tensor) else tensor


def gather_full_tensors(tensor: Tensor) -> Tensor:
    """As :func:`together` in the first process; the others help and keep their share."""
    if not distributed.is_sharded(tensor) or distributed.is_rank0():
        return together(tensor)
    full_tensor(tensor.detach())
    return tensor


def shard_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal in all processes, divided as ``like`` is."""
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    divided_: Tensor = distribute_tensor(value.to(held.device), held.device_mesh, held.placements, src_data_rank=None)
    return divided_


def load_full_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Whole tensors, equal in all processes, into a model that may be divided.

    Raises RuntimeError where they are of another model.
    """
    if not is_sharded(model):
        model.load_state_dict(dict(state))
        return
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise RuntimeError(f"{name} is not the same tensor in both")
    with torch.no_grad():
        for name, held in own.items():
            value = state[name]
            held.copy_(shard_of(value, held) if distributed.is_sharded(held) else value)


def is_sharded(module: nn.Module) -> bool:
    return any(distributed.is_sharded(p) for p in module.parameters())
