"""Batches of a split: the same whatever the number of workers and the order of the rows on disk.

The order of an epoch is a function of (seed, epoch, ids). Batches differ by one row at most: a last
batch of a single row would stop batch norm, or leave it with the statistics of one row.
"""

from __future__ import annotations

import math
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..compute.device import to_device
from ..errors import DataError, RegraftError, UsageError, shorten
from .columns import InputsOf, ids_of, some_of
from .fingerprints import KnownFiles
from .keyed_random import stable
from .preprocessing import ImagePreprocessor, Preprocessor, TextPreprocessor
from .types import Augment, Example

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..compute.arrays import Inputs
    from .decoded_images import DecodedImages


Index = tuple[int, int, Augment | None]  # draw, epoch, augmentation

CHUNK = 1024  # texts tokenised at once

WORKER_TIMEOUT_S = 900  # seconds that a batch of a loader process may take

WORKER_CHECK_S = 5  # seconds between two looks at whether the loader processes live

WINDOW = 16  # batches whose texts are sorted by length together


def order(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Positions of the ids in an epoch's order, a function of (seed, epoch, ids) alone."""
    return sorted(range(len(ids)), key=lambda i: (stable("order", seed, epoch, ids[i]), ids[i]))


def balanced(ids: Sequence[str], strata: Sequence[str], seed: int, epoch: int) -> list[int]:
    """As many draws as rows, of each stratum equally often (± 1), in an order that is a function of
    (seed, epoch, ids). Class-balanced sampling: Kang et al. 2020, 1910.09217, section 4.1, without
    chance in the counts: a stratum's rows are all drawn before one is drawn again.

    Draw d is row d % N; d // N says how often it was drawn before in this epoch.
    """
    n, names = len(ids), sorted(set(strata))
    names = [names[k] for k in order(names, seed, epoch)]  # who has one draw more
    members: dict[str, list[int]] = {name: [] for name in names}
    for i, name in enumerate(strata):
        members[name].append(i)
    drawn: list[int] = []
    for k, name in enumerate(names):
        rows = members[name]
        rows = [rows[j] for j in order([ids[i] for i in rows], seed, epoch)]
        quota = n // len(names) + (k < n % len(names))
        drawn += [rows[d % len(rows)] + n * (d // len(rows)) for d in range(quota)]
    keys = [f"{ids[d % n]} {d // n}" for d in drawn]
    return [drawn[k] for k in order(keys, seed, epoch)]


class Batches:
    """Rows of a split with their targets [N] or [N, C], in batches of at most ``batch_size``.

    Iterating gives the rows without augmentation, as they stand or, for texts, by length;
    ``epoch(n)``, n from 1, gives them in the order of epoch n, augmented. Each batch is
    (ids, inputs [B, …], targets [B] or [B, C]). With ``strata``, an epoch draws each equally often.
    ``share`` is this process's number and how many there are: an epoch gives its part of each batch.
    ``tokens`` are those of the examples, where they were made before. ``pictures``, which may be set
    before the first epoch, are decoded ones that are taken instead of their files. Inputs come on the
    ``device``, pictures in the memory ``layout``; targets on the CPU.

    Loader processes stay from one pass to the next, for as long as the batches do.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        targets: Tensor,
        preprocessor: Preprocessor,
        batch_size: int,
        workers: int = 0,
        augment: Augment | None = None,
        seed: int = 0,
        strata: Sequence[str] | None = None,
        share: tuple[int, int] = (0, 1),
        tokens: Tokens | None = None,
        pictures: DecodedImages | None = None,
        device: torch.device | None = None,
        layout: str = "contiguous",
    ) -> None:
        if len(examples) != len(targets):
            raise ValueError(f"{len(examples)} examples but {len(targets)} targets")
        if batch_size < 1:
            raise ValueError(f"batch_size is 1 or more, not {batch_size}")
        self.examples = examples
        self.targets = targets
        self.preprocessor = preprocessor
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.strata = strata
        self.share = share
        self.known = KnownFiles()
        self.tokens = None
        self.pictures = pictures
        self.device = device or torch.device("cpu")
        self.layout = layout
        self.workers = workers
        self._staying: _Staying | None = None
        if isinstance(preprocessor, TextPreprocessor):
            self.tokens = tokens or Tokens.of(preprocessor, InputsOf(examples))
            self.workers = 0  # padding is all that is left to do

    def __len__(self) -> int:
        """Rows."""
        return len(self.examples)

    @property
    def count(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Inputs, Tensor]]:
        return self.dealt(0, 1)

    def dealt(self, rank: int, size: int, view: int = 0) -> Iterator[tuple[tuple[str, ...], Inputs, Tensor]]:
        """Every ``size``-th batch from number ``rank`` on: of the rows as evaluation sees them or, from
        view 1 on, of the rows as they stand, each augmented as in that epoch."""
        rows = list(range(len(self)))
        if view:
            return self._batches(self._split(rows, view)[rank::size], self.augment, view)
        if self.tokens is not None:
            rows.sort(key=self.tokens.length)
        return self._batches(self._split(rows, 0)[rank::size], None, 0)

    def epoch(self, n: int, skip: int = 0) -> Iterator[tuple[tuple[str, ...], Inputs, Tensor]]:
        """The rows in the order of epoch ``n``, augmented, from batch ``skip`` on; of several processes,
        each one's part.

        A process without a row in a batch is given one that does not count: it has no id.
        """
        ids = list(ids_of(self.examples))
        strata = self.strata
        key = (self.seed, n)
        rows = order(ids, *key) if strata is None else balanced(ids, strata, *key)
        rank, size = self.share
        batches = self._split(rows, n)[skip:]
        own = [b[rank::size] or b[:1] for b in batches]
        for batch, (names, inputs, targets) in zip(batches, self._batches(own, self.augment, n), strict=True):
            yield (names if rank < len(batch) else ()), inputs, targets

    def _split(self, rows: list[int], epoch: int) -> list[list[int]]:
        """Rows in batches of even size. In training, texts of like length stand together: within a
        window of WINDOW batches they are sorted by length, and the batches are shuffled again."""
        if not rows:
            return []
        if self.tokens is None or epoch == 0:
            return [part.tolist() for part in np.array_split(rows, self.count)]
        parts: list[list[int]] = []
        width = WINDOW * self.batch_size
        for start in range(0, len(rows), width):
            window = sorted(rows[start : start + width], key=self.tokens.length)
            count = math.ceil(len(window) / self.batch_size)
            parts += [part.tolist() for part in np.array_split(window, count)]
        return [parts[i] for i in order([named(self.examples, p[0]) for p in parts], self.seed, epoch)]

    def _batches(
        self, batches: list[list[int]], augment: Augment | None, epoch: int
    ) -> Iterator[tuple[tuple[str, ...], Inputs, Tensor]]:
        if not batches:
            return
        todo = [[(d, epoch, augment) for d in batch] for batch in batches]
        staying = self._staying
        if staying is not None and (staying.busy or staying.pictures is not self.pictures):
            staying = None
        if staying is None:
            staying = _Staying(self)
            self._staying = staying if self.workers else None
        try:
            loaded = staying.begin(todo)
        except RuntimeError as error:  # one that stayed was killed between two passes
            if not _own(error):
                raise
            staying = self._staying = _Staying(self)
            loaded = staying.begin(todo)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                f"loader processes cannot be sent your transform ({error}): define it at the top level of a "
                f"file, or read without them, --workers 0"
            ) from error
        try:
            yield from self._given(loaded, batches)
        except BaseException:
            self._staying = None  # whatever state its processes are in
            raise
        finally:
            staying.busy = False

    def _given(
        self, loaded: Iterator[Inputs | DataError], batches: list[list[int]]
    ) -> Iterator[tuple[tuple[str, ...], Inputs, Tensor]]:
        for batch in batches:
            inputs = self._next(loaded, batch) if self.workers else next(loaded)
            if isinstance(inputs, DataError):
                raise inputs
            rows = [d % len(self) for d in batch]
            ready = self.preprocessor.finish(to_device(inputs, self.device, self.layout))
            yield tuple(ids_of(some_of(self.examples, rows))), ready, self.targets[rows]

    def _next(self, loaded: Iterator[Inputs | DataError], batch: list[int]) -> Inputs | DataError:
        """What loader processes make of ``batch``; of a dead or hanging one, its rows are named."""
        began = time.monotonic()
        while True:
            try:
                return next(loaded)
            except (RuntimeError, ConnectionError, EOFError) as error:
                late = _own(error) and "timed out" in str(error)
                if late and time.monotonic() - began < WORKER_TIMEOUT_S:
                    continue
                # the connection to a killed one may break first; a transform's come as "Caught …"
                cut = not isinstance(error, RuntimeError) and not str(error).startswith("Caught")
                if not (_own(error) or cut):
                    raise
                where = shorten([self.examples[d % len(self)].where for d in batch])
                raise RegraftError(
                    f"a loader process {'hangs' if late else 'was killed'}; these "
                    f"rows were waited for: {where}; go on with --resume, and with --workers 0 if it "
                    f"comes again (it may be out of memory)"
                ) from error


def _own(error: Exception) -> bool:
    """Whether it says in torch's words that a loader process is dead or late."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader")


class _Staying:
    """A loader whose processes stay from pass to pass. A sample's number says all that varies between
    passes, since the processes have copies of the rest."""

    def __init__(self, of: Batches) -> None:
        self.pictures = of.pictures
        self.busy = False
        self.todo: list[list[Index]] = []
        self.loader: Any = torch.utils.data.DataLoader(
            _Samples(of),
            batch_sampler=self.todo,
            num_workers=of.workers,
            persistent_workers=of.workers > 0,
            pin_memory=of.device.type == "cuda",  # so that a copy to it need not be waited for
            collate_fn=partial(_collated, of.preprocessor),
            # the loader draws a seed for its workers: not from the caller's generator
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_leave_interrupts,
            timeout=WORKER_CHECK_S if of.workers else 0,
        )

    def begin(self, todo: list[list[Index]]) -> Iterator[Inputs | DataError]:
        self.todo[:] = todo
        loaded: Any = iter(self.loader)
        if getattr(loaded, "_worker_pids_set", False):
            # Torch answers the death of a process it knows by an error in whatever runs then: a training
            # step, or a destructor, which prints and drops it. The next look finds it out in its place.
            torch._C._remove_worker_pids(id(loaded))
            loaded._worker_pids_set = False
        self.busy = True
        return cast("Iterator[Inputs | DataError]", loaded)


def _collated(preprocessor: Preprocessor, samples: list[Any]) -> Inputs | DataError:
    """A batch, or the first failure: raised in a worker, its message would be a traceback."""
    failed = [s for s in samples if isinstance(s, DataError)]
    return failed[0] if failed else preprocessor.stack(samples)


def _leave_interrupts(worker: int) -> None:
    """A loader process leaves SIGINT to its parent, who finishes the step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Samples(torch.utils.data.Dataset[Any]):
    """Samples by (draw, epoch, augmentation)."""

    def __init__(self, of: Batches) -> None:
        self.examples, self.preprocessor, self.seed = of.examples, of.preprocessor, of.seed
        self.tokens, self.pictures, self.known = of.tokens, of.pictures, of.known

    def __getitem__(self, index: Index) -> Any:
        draw, epoch, augment = index
        if self.tokens is not None:
            return self.tokens[draw]
        example = self.examples[draw % len(self.examples)]
        key = (self.seed, epoch, named(self.examples, draw))
        if self.pictures is not None and isinstance(self.preprocessor, ImagePreprocessor):
            picture = self.pictures.get(example.id)
            if picture is not None:
                return self.preprocessor.varied(picture, augment, key)
        try:
            self.known.check(example)
            return self.preprocessor.one(example.inputs, augment, key)
        except DataError as error:
            return error


def named(examples: Sequence[Example], draw: int) -> str:
    """A draw's key for what is random: the row's id, and how often it was drawn before."""
    before, row = divmod(draw, len(examples))
    (id_,) = ids_of(some_of(examples, [row]))
    return f"{id_} {before}" if before else id_


class Tokens:
    """Tokenised texts, end to end in one array a key: a list of lists is ten times as large."""

    def __init__(self, ends: NDArray[np.int64], flat: dict[str, NDArray[Any]]) -> None:
        self.ends = ends  # [N + 1]: text i is tokens ends[i] to ends[i + 1]
        self.flat = flat

    @classmethod
    def of(cls, preprocessor: TextPreprocessor, inputs: Sequence[tuple[str, ...]]) -> Tokens:
        parts: dict[str, list[Any]] = {}
        lengths: list[int] = [0]
        for start in range(0, len(inputs), CHUNK):
            encoded = preprocessor.many(inputs[start : start + CHUNK])
            lengths += [len(row["input_ids"]) for row in encoded]
            for key in encoded[0]:
                flat = [token for row in encoded for token in row[key]]
                least = np.min_scalar_type(max(flat, default=0))  # a mask needs a byte, not four
                parts.setdefault(key, []).append(np.asarray(flat, dtype=least))
        return cls(np.cumsum(lengths), {k: np.concatenate(arrays) for k, arrays in parts.items()})

    def take(self, rows: Sequence[int]) -> Tokens:
        """Those of some texts."""
        spans = [slice(self.ends[i], self.ends[i + 1]) for i in rows]
        flat = {k: np.concatenate([a[s] for s in spans]) for k, a in self.flat.items()}
        return Tokens(np.cumsum([0, *(s.stop - s.start for s in spans)]), flat)

    def length(self, i: int) -> int:
        i %= len(self.ends) - 1
        return int(self.ends[i + 1] - self.ends[i])

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        i %= len(self.ends) - 1
        start, end = self.ends[i], self.ends[i + 1]
        return {key: array[start:end].tolist() for key, array in self.flat.items()}
