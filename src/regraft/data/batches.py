"""Batches of a split: the same whatever the number of workers and the order of the rows on disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ..compute.device import Compute
from ..compute.distributed import gather_objects, rank, world_size
from ..errors import DataError, UsageError
from .columns import ids_of, some_of
from .ordering import EpochOrder
from .readers import PersistentLoader, is_loader_error

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import Inputs
    from ..compute.distributed import T
    from .readers import Index, Reader
    from .types import Augment, Example

    LabelledBatch = tuple[tuple[str, ...], Inputs, Tensor]  # ids, inputs [B, …], targets [B] or [B, C]


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a split with their targets."""

    examples: Sequence[Example]
    targets: Tensor  # [N] or [N, C], as the task encodes labels, on the CPU

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.targets):
            raise ValueError(f"{len(self.examples)} examples but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, rows: Sequence[int]) -> LabelledRows:
        """Return some of the rows, in this order."""
        return LabelledRows(some_of(self.examples, rows), self.targets[list(rows)])


class Batches:
    """Batches of labelled rows, as (ids, inputs [B, …], targets [B] or [B, C]).

    Iterating yields the rows as evaluation sees them, as they stand or, for texts, by length. ``epoch(n)``,
    n from 1, yields them in the order of epoch n, augmented. Inputs lie on the device of ``compute`` in its
    memory layout; targets lie on the CPU. Workers live as long as the batches.
    """

    def __init__(self, rows: LabelledRows, reader: Reader, order: EpochOrder, compute: Compute | None = None) -> None:
        self.rows = rows
        self.reader = reader  # may be replaced between two passes
        self.order = order
        self.compute = compute or Compute()
        self._loader: PersistentLoader | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def examples(self) -> Sequence[Example]:
        """Return the rows without their targets."""
        return self.rows.examples

    @property
    def count(self) -> int:
        """Return the number of batches of an epoch."""
        return self.order.count(len(self))

    def __iter__(self) -> Iterator[LabelledBatch]:
        return self.deal(0, 1)

    def deal(self, rank: int, size: int, view: int = 0) -> Iterator[LabelledBatch]:
        """Yield every ``size``-th batch, from number ``rank`` on.

        View 0 is the rows as evaluation sees them. Any other view is the rows as they stand, each augmented as
        in that epoch.
        """
        length = self.reader.length
        if view:
            draws = self.order.training(range(len(self)), self.examples, view, length)
            return self._read(draws[rank::size], self.reader.augment, view)
        return self._read(self.order.evaluation(len(self), length)[rank::size], None, 0)

    def epoch(self, n: int, skip: int = 0) -> Iterator[LabelledBatch]:
        """Yield this rank's part of each batch of epoch ``n``, augmented, from batch ``skip`` on.

        A rank without a row in a batch yields a padding row, which has no id: the rank must join the
        collectives of the step.
        """
        batches = self.order.epoch(self.examples, n, self.reader.length)[skip:]
        rank, size = self.order.share
        own = [batch[rank::size] or batch[:1] for batch in batches]
        for batch, (ids, inputs, targets) in zip(batches, self._read(own, self.reader.augment, n), strict=True):
            yield (ids if rank < len(batch) else ()), inputs, targets

    def _read(self, batches: list[list[int]], augment: Augment | None, epoch: int) -> Iterator[LabelledBatch]:
        if not batches:
            return
        loader, loaded = self._begin([[(draw, epoch, augment) for draw in batch] for batch in batches])
        try:
            for batch in batches:
                rows = [draw % len(self) for draw in batch]
                inputs = loader.read_next(loaded, rows)
                if isinstance(inputs, DataError):
                    raise inputs
                ready = self.reader.finish(self.compute.to_device(inputs))
                yield tuple(ids_of(some_of(self.examples, rows))), ready, self.rows.targets[rows]
        except BaseException:  # Ctrl-C and a closed generator too; it is raised again
            self._loader = None  # its workers may be anywhere in the pass
            raise
        finally:
            loader.busy = False

    def _begin(self, indices: list[list[Index]]) -> tuple[PersistentLoader, Iterator[Inputs | DataError]]:
        """Start a pass with the workers of the last one, or with new ones."""
        loader = self._loader
        if loader is None or loader.busy or loader.reader is not self.reader:
            loader = self._new_loader()
        try:
            return loader, loader.begin(indices)
        except RuntimeError as error:  # a worker was killed between two passes
            if not is_loader_error(error):
                raise
            loader = self._new_loader()
            return loader, loader.begin(indices)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                f"DataLoader workers cannot be sent your transform ({error}): define it at the top level of a "
                f"file, or read without workers, --workers 0"
            ) from error

    def _new_loader(self) -> PersistentLoader:
        # a copy from pinned memory to a GPU runs beside the computation
        pinned = self.compute.device.type == "cuda"
        loader = PersistentLoader(self.examples, self.reader, self.order.seed, pinned=pinned)
        self._loader = loader if self.reader.workers else None
        return loader


def map_batches(
    batches: Batches, compute: Callable[[tuple[str, ...], Inputs, Tensor], T], view: int = 0
) -> Iterator[T]:
    """Yield ``compute(ids, inputs, targets)`` of every batch of evaluation (or of a view), in order.

    Each rank computes some of the batches and yields the values of all.
    """
    own = batches.deal(rank(), world_size(), view)
    if world_size() == 1:
        yield from (compute(*batch) for batch in own)
        return
    for _ in range(ceil(batches.count / world_size())):
        batch = next(own, None)
        yield from gather_objects([] if batch is None else [compute(*batch)])
