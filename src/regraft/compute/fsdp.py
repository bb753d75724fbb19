"""Weights that FSDP2 shards over the ranks while they train.

Each rank holds a part of the weights, of their gradients and of the optimizer's state. FSDP gathers the
rest of a block while the block computes, so every rank takes part in every forward pass.

After the fit, from the frontier on, each device holds the full weights again, but neither gradients nor an
optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from . import distributed

if TYPE_CHECKING:
    from torch import Tensor, nn


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in full, and any other unchanged. Every rank must call this."""
    held: Any = tensor
    full: Tensor = held.full_tensor() if distributed.is_sharded(tensor) else tensor
    return full


def full_tensor_on_cpu(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in full on the CPU, and any other unchanged. The device holds one at a time."""
    return full_tensor(tensor.detach()).cpu() if distributed.is_sharded(tensor) else tensor


def gather_full_tensors(tensor: Tensor) -> Tensor:
    """Return a full tensor on rank 0, as :func:`full_tensor_on_cpu`; other ranks return their part."""
    if not distributed.is_sharded(tensor) or distributed.is_rank0():
        return full_tensor_on_cpu(tensor)
    full_tensor(tensor.detach())
    return tensor


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, equal on all ranks, as ``like`` is sharded."""
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    sharded: Tensor = distribute_tensor(value.to(held.device), held.device_mesh, held.placements, src_data_rank=None)
    return sharded


def load_full_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load full tensors, equal on all ranks, into a model that may be sharded.

    Raises RuntimeError if they are of another model.
    """
    if not has_shards(model):
        model.load_state_dict(dict(state))
        return
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise RuntimeError(f"{name} is not the same tensor in both")
    with torch.no_grad():
        for name, held in own.items():
            value = state[name]
            held.copy_(shard_like(value, held) if distributed.is_sharded(held) else value)


def has_shards(module: nn.Module) -> bool:
    """Return whether FSDP sharded any parameter of a module."""
    return any(distributed.is_sharded(p) for p in module.parameters())
