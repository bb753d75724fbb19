"""Many processes: who computes which rows, and what they tell one another.

One process is the ordinary case, in which nothing here does anything. More are started by
``regraft fit --nproc N`` (see :mod:`regraft.commands.launch`) or torchrun and joined through accelerate; each
holds the whole model.

training     each batch's rows are divided; gradients are summed, so that a step is that of one process
evaluation   whole batches in turn, so that a batch, and every bit of it, is that of one process
choices      what depends on the clock or the disk is what the first process found
writing      the first process alone
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

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)  # for a rank that is slow to come

MAX_BUCKET_NUMBERS = 25_000_000  # numbers that are summed in one message

_alone: list[bool] = []  # inside of ``alone``: what this process does, it does by itself


def launched_world_size() -> int:
    """How many processes a launcher started; 1 where there was none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(wanted: int | None, *, cpu: bool) -> None:
    """Meet the other processes. Raises UsageError where there are not as many as ``wanted``."""
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
    """Return where ranks meet, as ``init_process_group`` takes it: a file, if ``regraft fit --nproc``
    started them; else the environment says it, as torchrun does."""
    if not launched():
        return {}
    end_with_launcher()
    store = torch.distributed.FileStore(store_file(), launched_world_size())  # type: ignore[attr-defined]
    store.set_timeout(RENDEZVOUS_TIMEOUT)
    return {"store": store, "rank": int(os.environ["RANK"]), "world_size": launched_world_size()}


@contextmanager
def naming_a_lost_rank(out: str) -> Iterator[None]:
    """Raise RankError inside the block where a collective failed since another rank has ended: what
    torch says of it names no rank, no signal and no remedy."""
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
    """Part from the others, where they met."""
    if torch.distributed.is_initialized():
        from accelerate import PartialState

        torch.distributed.destroy_process_group()
        PartialState._reset_state()


def world_size() -> int:
    return 1 if _alone or not torch.distributed.is_initialized() else torch.distributed.get_world_size()


def rank() -> int:
    return 0 if _alone or not torch.distributed.is_initialized() else torch.distributed.get_rank()


def is_rank0() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


@contextmanager
def single_process(so: bool = True) -> Iterator[None]:
    """Inside, this process is the only one, if ``so``."""
    if so:
        _alone.append(True)
    try:
        yield
    finally:
        if so:
            _alone.pop()


# ---------------------------------------------------------------- what they tell one another


def all_reduce_sum(*values: float) -> list[float]:
    """Each value's sum over the processes."""
    if world_size() == 1:
        return list(values)
    from accelerate.utils import reduce

    here = torch.tensor(values, dtype=torch.float64, device=_message_device())
    return reduce(here, reduction="sum").tolist()  # type: ignore[no-any-return]


def any_rank(here: bool) -> bool:
    """Whether it is so in one process or more."""
    return here if world_size() == 1 else all_reduce_sum(float(here))[0] > 0


def broadcast(value: T) -> T:
    """What the first process has."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


def gather_objects(values: list[T]) -> list[T]:
    """The lists of all processes, one after another."""
    if world_size() == 1:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)  # type: ignore[no-any-return]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Each gradient becomes its sum over the processes, the same to the bit in all of them."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    # those of divided weights are sums already
    for gradient in [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > MAX_BUCKET_NUMBERS:
            _sum(bucket)
            bucket = []
        bucket.append(gradient)
    _sum(bucket)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a share of it (see :mod:`regraft.compute.fsdp`)."""
    return hasattr(tensor, "full_tensor")


def _sum(tensors: Sequence[Tensor]) -> None:
    if tensors:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast_model(model: nn.Module) -> None:
    """The model's tensors are those of the first process; divided ones are of one model anyway."""
    if world_size() > 1:
        for tensor in [t for t in (*model.parameters(), *model.buffers()) if not is_sharded(t)]:
            torch.distributed.broadcast(tensor.data, 0)


def average_buffers(model: nn.Module) -> None:
    """Statistics that each process took of its own rows become their mean."""
    if world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                torch.distributed.all_reduce(buffer)
                buffer.div_(world_size())


def _message_device() -> torch.device:
    """Where the processes' messages lie."""
    cuda = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda" if cuda else "cpu")


def map_over_ranks(items: Sequence[Any], compute: Callable[[Any], T]) -> list[T]:
    """``compute(item)`` of every item, in order; each process computes some of them, alone."""
    me, n = rank(), world_size()
    with single_process():
        own = [compute(item) for item in items[me::n]]
    by_process = gather_objects([own])
    return [by_process[i % n][i // n] for i in range(len(items))]
