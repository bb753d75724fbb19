"""Worker processes that read samples: they live from epoch to epoch, and a dead or late one names its rows."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from ..errors import DataError, RegraftError, shorten

if TYPE_CHECKING:
    from ..compute.arrays import Inputs
    from .readers import Index, Reader
    from .types import Example


WORKER_TIMEOUT_S = 900  # that a worker may take for a batch

WORKER_CHECK_S = 5  # between two checks that the workers live


class PersistentLoader:
    """A DataLoader whose workers live across epochs. The index carries everything that changes from pass to
    pass, because workers hold copies of the rest."""

    def __init__(self, examples: Sequence[Example], reader: Reader, seed: int, *, pinned: bool) -> None:
        self.examples, self.reader = examples, reader
        self.busy = False  # a pass is under way
        self.indices: list[list[Index]] = []
        self.loader: Any = torch.utils.data.DataLoader(
            Samples(examples, reader, seed),
            batch_sampler=self.indices,
            num_workers=reader.workers,
            persistent_workers=reader.workers > 0,
            pin_memory=pinned,
            collate_fn=partial(collate, reader),
            # the loader draws a seed for its workers: not from the caller's generator
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=ignore_interrupts,
            timeout=WORKER_CHECK_S if reader.workers else 0,
        )

    def begin(self, indices: list[list[Index]]) -> Iterator[Inputs | DataError]:
        """Start a pass over these batches. Raises torch's RuntimeError if a worker died since the last pass."""
        self.indices[:] = indices
        loaded: Any = iter(self.loader)
        if getattr(loaded, "_worker_pids_set", False):
            # Torch would answer a worker's death with an error in whatever runs then: a training step, or a
            # destructor, which prints the error and drops it. Without its ids, the next read finds out.
            torch._C._remove_worker_pids(id(loaded))
            loaded._worker_pids_set = False
        self.busy = True
        return cast("Iterator[Inputs | DataError]", loaded)

    def read_next(self, loaded: Iterator[Inputs | DataError], rows: Sequence[int]) -> Inputs | DataError:
        """Return the next batch, which is of these rows.

        Raises RegraftError, naming the rows, if a worker died or takes longer than WORKER_TIMEOUT_S.
        """
        if not self.reader.workers:
            return next(loaded)
        began = time.monotonic()
        while True:
            try:
                return next(loaded)
            except (RuntimeError, ConnectionError, EOFError) as error:
                late = is_loader_error(error) and "timed out" in str(error)
                if late and time.monotonic() - began < WORKER_TIMEOUT_S:
                    continue
                # the connection to a killed worker may break first; a transform's own errors begin "Caught …"
                cut = not isinstance(error, RuntimeError) and not str(error).startswith("Caught")
                if not (is_loader_error(error) or cut):
                    raise
                where = shorten([self.examples[i].where for i in rows])
                raise RegraftError(
                    f"a DataLoader worker {'hangs' if late else 'was killed'}; these rows were in its batch: "
                    f"{where}; go on with --resume, and with --workers 0 if it happens again (the machine may "
                    f"be out of memory)"
                ) from error


def is_loader_error(error: Exception) -> bool:
    """Return whether torch says with this error that a worker is dead or late."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader")


def collate(reader: Reader, samples: list[Any]) -> Inputs | DataError:
    """Return a batch, or the first error: raised in a worker, its message would be a traceback."""
    failed = [s for s in samples if isinstance(s, DataError)]
    return failed[0] if failed else reader.stack(samples)


def ignore_interrupts(worker: int) -> None:
    """Leave SIGINT to the parent process, which finishes the step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Samples(torch.utils.data.Dataset[Any]):
    """Samples by (draw, epoch, augmentation)."""

    def __init__(self, examples: Sequence[Example], reader: Reader, seed: int) -> None:
        self.examples, self.reader, self.seed = examples, reader, seed

    def __getitem__(self, index: Index) -> Any:
        try:
            return self.reader.read(self.examples, index, self.seed)
        except DataError as error:
            return error
