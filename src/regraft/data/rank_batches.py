"""Batches of an evaluation, computed by the ranks in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING

from ..compute.distributed import gather_objects, rank, world_size

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import Inputs
    from ..compute.distributed import T
    from .batches import Batches


# ---------------------------------------------------------------- who computes what


def map_batches(
    batches: Batches, compute: Callable[[tuple[str, ...], Inputs, Tensor], T], view: int = 0
) -> Iterator[T]:
    """``compute(ids, inputs, targets)`` of every batch of evaluation (or of a view), in order.

    Each process computes some of them and is given all.
    """
    own = batches.dealt(rank(), world_size(), view)
    if world_size() == 1:
        yield from (compute(*batch) for batch in own)
        return
    for _ in range(ceil(batches.count / world_size())):
        batch = next(own, None)
        yield from gather_objects([] if batch is None else [compute(*batch)])
