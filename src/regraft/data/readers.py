"""Readers make samples of rows, and batches of samples: of images, of texts, or by a function.

A reader is copied to each worker. It is not changed in place: a copy with another setting takes its place.
Workers live from epoch to epoch, and a dead or late one names its rows.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch

from ..errors import DataError, RegraftError, shorten
from .columns import ByName, InputsOf, ids_of
from .image_store import DecodedImages, ImageStore
from .images import KnownFiles
from .ordering import name_draw
from .preprocessing import ImagePreprocessor, Preprocessor, TextPreprocessor, starts_whole
from .types import content_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..compute.arrays import Inputs
    from .ordering import Key
    from .store import FeatureCache
    from .types import Augment, Example

Index = tuple[int, int, "Augment | None"]  # draw, epoch, augmentation

CHUNK_TEXTS = 1024  # texts tokenised at once

WORKER_TIMEOUT_S = 900  # that a worker may take for a batch

WORKER_CHECK_S = 5  # between two checks that the workers live


@dataclass(frozen=True)
class Reader:
    """The way from rows to the network's inputs: a preprocessor that takes a row at a time."""

    preprocessor: Preprocessor
    augment: Augment | None = None  # the random views of an epoch; None: epochs read rows as evaluation does
    workers: int = 0  # processes that read; 0: this process reads
    known: KnownFiles = field(default_factory=KnownFiles, compare=False)

    @property
    def length(self) -> Callable[[int], int] | None:
        """Return the length of a draw as a function, by which batches are sorted; None: rows have no length."""
        return None

    def alone(self) -> Self:
        """Return a copy that reads in this process."""
        return replace(self, workers=0)

    def read(self, examples: Sequence[Example], index: Index, seed: int) -> Any:
        """Read one draw, a sample: a function of the row, the seed and the index.

        Raises DataError for a file that does not read, or that changed after the data were read.
        """
        draw, epoch, augment = index
        example = examples[draw % len(examples)]
        return self.read_row(example, augment, (seed, epoch, name_draw(examples, draw)))

    def read_row(self, example: Example, augment: Augment | None, key: Key) -> Any:
        """Read a row; random steps depend on ``key`` alone."""
        self.known.check(example)
        return self.preprocessor.one(example.inputs, augment, key)

    def stack(self, samples: Sequence[Any]) -> Inputs:
        """Join samples to a batch, as it travels to the device."""
        return self.preprocessor.stack(samples)

    def finish(self, batch: Any) -> Inputs:
        """Turn a batch on its device into the network's inputs [B, …]."""
        return self.preprocessor.finish(batch)


@dataclass(frozen=True)
class ImageReader(Reader):
    """A reader of image files. It takes decoded images from a cache where the cache has them."""

    preprocessor: ImagePreprocessor
    images: DecodedImages | None = None  # decoded before; None: every image is decoded from its file

    def read_row(self, example: Example, augment: Augment | None, key: Key) -> Tensor:
        """Return an image [C, H, W], uint8."""
        decoded = None if self.images is None else self.images.get(example.id)
        if decoded is not None:
            return self.preprocessor.augmented(decoded, augment, key)
        image: Tensor = super().read_row(example, augment, key)
        return image


@dataclass(frozen=True)
class TextReader(Reader):
    """A reader of tokenised texts. Only padding is left to do, so it needs no workers."""

    preprocessor: TextPreprocessor
    tokens: Tokens = field(kw_only=True)

    @property
    def length(self) -> Callable[[int], int]:
        """Return the number of tokens of a draw as a function."""
        return self.tokens.length

    def read(self, examples: Sequence[Example], index: Index, seed: int) -> dict[str, list[int]]:
        """Return the tokens of a draw. A text has no augmentation."""
        return self.tokens[index[0]]


def make_reader(
    preprocessor: Preprocessor,
    examples: Sequence[Example],
    *,
    augment: Augment | None = None,
    workers: int = 0,
    tokens: Tokens | None = None,
    images: DecodedImages | None = None,
) -> Reader:
    """Return the reader that a preprocessor needs.

    ``tokens`` are those of the examples, if they were made before; else texts are tokenised now.
    """
    if isinstance(preprocessor, TextPreprocessor):
        tokens = tokens or Tokens.of(preprocessor, InputsOf(examples))
        return TextReader(preprocessor, augment, tokens=tokens)
    if isinstance(preprocessor, ImagePreprocessor):
        return ImageReader(preprocessor, augment, workers, images=images)
    return Reader(preprocessor, augment, workers)


def use_image_cache(
    reader: Reader,
    examples: Sequence[Example],
    split: str,
    cache: FeatureCache | None,
    passes: int,
    memo: dict[tuple[str, bool], DecodedImages | None],
    note: Callable[[str], None],
) -> Reader:
    """Return the reader with decoded images of a split from the cache, if that pays over so many ``passes``.

    ``examples`` are all rows of the split, of which the reader may read some. ``memo`` keeps the images by
    split and whether they are whole. ``note`` takes the line that tells whether the cache is used.
    """
    contents = list(map(content_of, ids_of(examples)))
    hashed = all(re.fullmatch("[0-9a-f]{16}", content) for content in contents)  # else ids are not contents
    if cache is None or not isinstance(reader, ImageReader) or not hashed:
        return reader
    whole = starts_whole(reader.augment)
    if (split, whole) not in memo:
        store = ImageStore(cache, reader.preprocessor, whole, max(1, reader.workers), note)
        memo[split, whole] = store.load_or_write(ByName(contents, examples), split, passes)
    return replace(reader, images=memo[split, whole])


class Tokens:
    """Tokenised texts, end to end in one array a key: a list of lists is ten times as large."""

    def __init__(self, ends: NDArray[np.int64], flat: dict[str, NDArray[Any]]) -> None:
        self.ends = ends  # [N + 1]: text i is tokens ends[i] to ends[i + 1]
        self.flat = flat

    @classmethod
    def of(cls, preprocessor: TextPreprocessor, inputs: Sequence[tuple[str, ...]]) -> Tokens:
        """Tokenise texts, or pairs of texts."""
        parts: dict[str, list[Any]] = {}
        lengths: list[int] = [0]
        for start in range(0, len(inputs), CHUNK_TEXTS):
            encoded = preprocessor.many(inputs[start : start + CHUNK_TEXTS])
            lengths += [len(row["input_ids"]) for row in encoded]
            for key in encoded[0]:
                flat = [token for row in encoded for token in row[key]]
                least = np.min_scalar_type(max(flat, default=0))  # a mask needs a byte, not four
                parts.setdefault(key, []).append(np.asarray(flat, dtype=least))
        return cls(np.cumsum(lengths), {k: np.concatenate(arrays) for k, arrays in parts.items()})

    def take(self, rows: Sequence[int]) -> Tokens:
        """Return the tokens of some texts."""
        spans = [slice(self.ends[i], self.ends[i + 1]) for i in rows]
        flat = {k: np.concatenate([a[s] for s in spans]) for k, a in self.flat.items()}
        return Tokens(np.cumsum([0, *(s.stop - s.start for s in spans)]), flat)

    def length(self, draw: int) -> int:
        """Return the number of tokens of a draw, which is text ``draw`` % N."""
        i = draw % (len(self.ends) - 1)
        return int(self.ends[i + 1] - self.ends[i])

    def __getitem__(self, draw: int) -> dict[str, list[int]]:
        i = draw % (len(self.ends) - 1)
        start, end = self.ends[i], self.ends[i + 1]
        return {key: array[start:end].tolist() for key, array in self.flat.items()}


# ---------------------------------------------------------------- worker processes


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
