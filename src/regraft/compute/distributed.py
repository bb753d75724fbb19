"""Ranks: the rows that each computes, and the collectives between them.

With one process, the usual case, the functions here return their arguments. ``regraft fit --nproc N`` (see
:mod:`regraft.commands.launch`) or torchrun starts more ranks, and accelerate joins them. Each rank holds the
whole model.

training     ranks divide each batch's rows and sum their gradients, so that a step is that of one process
evaluation   ranks take whole batches in turn, so that a batch is computed as one process computes it
choices      rank 0 broadcasts what depends on the clock or the disk
writing      rank 0 alone writes
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..errors import RankError, UsageError
from ..io.command_lines import command
from .launched import end_with_launcher, launched, store_file

if TYPE_CHECKING:
    from torch import Tensor, nn


T = TypeVar("T")

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)  # until the last rank must have joined

MAX_BUCKET_NUMBERS = 25_000_000  # numbers of gradients in one all-reduce

_alone: list[bool] = []  # not empty inside ``single_process``


def launched_world_size() -> int:
    """Return the number of ranks that a launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(wanted: int | None, *, cpu: bool) -> None:
    """Join the other ranks. Raises UsageError if their number is not ``wanted``."""
    if wanted is not None and wanted != launched_world_size():
        raise UsageError(
            f"the plan asks for {wanted} processes and {launched_world_size()} were started: "
            f"regraft fit PLAN --nproc {wanted}, or torchrun --nproc-per-node {wanted} -m regraft fit PLAN"
        )
    if launched_world_size() > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=cpu, **rendezvous())
        found = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if found != launched_world_size():
            raise UsageError(f"{launched_world_size()} processes were started and {found} have met")


def rendezvous() -> dict[str, Any]:
    """Return the place where ranks meet, as arguments of ``init_process_group``: a file if ``regraft fit
    --nproc`` started them. Torchrun names its place in the environment."""
    if not launched():
        return {}
    end_with_launcher()
    store = torch.distributed.FileStore(store_file(), launched_world_size())  # type: ignore[attr-defined]
    store.set_timeout(RENDEZVOUS_TIMEOUT)
    return {"store": store, "rank": int(os.environ["RANK"]), "world_size": launched_world_size()}


@contextmanager
def naming_a_lost_rank(out: str) -> Iterator[None]:
    """Raise RankError if a collective in the block fails because another rank has ended: torch's own error
    names neither a rank nor a remedy."""
    try:
        yield
    except RuntimeError as error:
        of_a_collective = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if not torch.distributed.is_initialized() or not of_a_collective:
            raise
        raise RankError(
            f"another rank has ended, and this one cannot go on alone: go on with `{command('fit', '--resume', out)}`"
        ) from None


def leave() -> None:
    """Leave the other ranks, if this one joined them."""
    if torch.distributed.is_initialized():
        from accelerate import PartialState

        torch.distributed.destroy_process_group()
        PartialState._reset_state()


def world_size() -> int:
    """Return the number of ranks; 1 inside ``single_process``."""
    return 1 if _alone or not torch.distributed.is_initialized() else torch.distributed.get_world_size()


def rank() -> int:
    """Return this process's rank; 0 inside ``single_process``."""
    return 0 if _alone or not torch.distributed.is_initialized() else torch.distributed.get_rank()


def is_rank0() -> bool:
    """Return whether this process is rank 0, which alone writes and prints."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


@contextmanager
def single_process(enabled: bool = True) -> Iterator[None]:
    """Make collectives local to this process inside the block."""
    if enabled:
        _alone.append(True)
    try:
        yield
    finally:
        if enabled:
            _alone.pop()


# ---------------------------------------------------------------- collectives


def all_reduce_sum(*values: float) -> list[float]:
    """Return each value's sum over the ranks."""
    if world_size() == 1:
        return list(values)
    from accelerate.utils import reduce

    here = torch.tensor(values, dtype=torch.float64, device=_message_device())
    return reduce(here, reduction="sum").tolist()  # type: ignore[no-any-return]


def any_rank(here: bool) -> bool:
    """Return whether ``here`` is true on any rank."""
    return here if world_size() == 1 else all_reduce_sum(float(here))[0] > 0


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


def gather_objects(values: list[T]) -> list[T]:
    """Return the lists of all ranks, joined in the order of ranks."""
    if world_size() == 1:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)  # type: ignore[no-any-return]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over the ranks, equal on all of them to the bit."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    # gradients of sharded weights are sums already
    for gradient in [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > MAX_BUCKET_NUMBERS:
            _sum(bucket)
            bucket = []
        bucket.append(gradient)
    _sum(bucket)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether FSDP sharded a tensor, so that this rank holds a part (see :mod:`regraft.compute.fsdp`)."""
    return hasattr(tensor, "full_tensor")


def _sum(tensors: Sequence[Tensor]) -> None:
    if tensors:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast_model(model: nn.Module) -> None:
    """Copy rank 0's weights and buffers to every rank. Sharded tensors are parts of one model already."""
    if world_size() > 1:
        for tensor in [t for t in (*model.parameters(), *model.buffers()) if not is_sharded(t)]:
            torch.distributed.broadcast(tensor.data, 0)


def average_buffers(model: nn.Module) -> None:
    """Replace buffers, such as batch-norm statistics, by their mean over the ranks."""
    if world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                torch.distributed.all_reduce(buffer)
                buffer.div_(world_size())


def _message_device() -> torch.device:
    """Return the device on which the backend communicates."""
    cuda = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda" if cuda else "cpu")


def map_over_ranks(items: Sequence[Any], compute: Callable[[Any], T]) -> list[T]:
    """Return ``compute(item)`` of every item, in order. Each rank computes some items, without the others."""
    me, n = rank(), world_size()
    with single_process():
        own = [compute(item) for item in items[me::n]]
    by_rank = gather_objects([own])
    return [by_rank[i % n][i // n] for i in range(len(items))]
