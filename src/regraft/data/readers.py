"""Readers make samples of rows, and batches of samples: of images, of texts, or by a function.

A reader is copied to each worker. It is not changed in place: a copy with another setting takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

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
    from .keyed_random import Key
    from .store import FeatureCache
    from .types import Augment, Example

Index = tuple[int, int, "Augment | None"]  # draw, epoch, augmentation

CHUNK_TEXTS = 1024  # texts tokenised at once


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
