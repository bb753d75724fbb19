"""Cache of decoded images on disk, mapped: an image is read, decoded and resized once.

ROOT/<key>/index.json     each image's content hash, shape and checksum; its sha256 beside it
ROOT/<key>/pixels.bin     uint8 [H, W, C], one image after another

An entry holds images before any random step: the whole image if training crops at random, else the image as
for evaluation. The pixels equal those of the file, bit for bit, so no result depends on a cache hit. Entries
lie in the feature cache and share its limit. The pixels are not synced, because an image with a wrong
checksum is read from its file again.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from ..compute import distributed
from ..io.progress import stage
from .images import KnownFiles
from .preprocessing import ImagePreprocessor, to_json
from .store import write_index
from .types import content_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .store import FeatureCache
    from .types import Example


SCHEMA = 3

TIMED_IMAGES = 8  # decoded to estimate the time of all

COPY_BYTES_PER_S = 2e9  # to check and write, or to read from the system's file cache

READ_BYTES_PER_S = 500e6  # to read from the disk

MIN_SAVED_S = 0.5  # seconds that an entry must save

CHUNK_IMAGES = 64  # decoded before they are written

RNG = random.SystemRandom()  # picks the images to check, so that no seed of a run is used


@dataclass(frozen=True)
class ImageStore:
    """Decoded images in a cache: those of one preprocessor, whole or as for evaluation."""

    cache: FeatureCache
    preprocessor: ImagePreprocessor
    whole: bool  # images as decoded; else as for evaluation
    threads: int  # that decode at once
    note: Callable[[str], None]  # takes a line for people

    def load_or_write(self, rows: Mapping[str, Example], split: str, passes: int) -> DecodedImages | None:
        """Return the entry of these rows; rank 0 writes it if that pays over so many ``passes``.

        ``rows`` has one row a content. Returns None, and notes why, where the files are to be read. Every
        rank must call this.
        """
        key, what = key_of(self.preprocessor, self.whole, list(rows)), f"decoded pictures of {split}"
        images, failed = self._open(key)
        there = not distributed.any_rank(images is None)
        # random rows, because they also check the entry
        sample = [rows[content] for content in RNG.sample(list(rows), min(TIMED_IMAGES, len(rows)))]
        began = time.perf_counter()
        decoded = [self.preprocessor.decoded(row.inputs, self.whole) for row in sample]
        seconds = (time.perf_counter() - began) * len(rows) / len(sample)
        size = sum(image.numel() for image in decoded) * len(rows) // len(sample)
        if failed := next(filter(None, distributed.gather_objects([failed])), ""):
            self.note(f"{what}: not kept, the cache cannot be used: {failed}")
            return None
        why = distributed.broadcast(no_gain(self.cache, seconds / self.threads, size, passes, self.threads, there))
        if why:
            if passes * seconds / self.threads >= MIN_SAVED_S:  # else there was nothing to save
                self.note(f"{what}: not kept, {why}")
            return None
        if not there and distributed.is_rank0():
            try:
                write(self.cache, key, stage(what, len(rows), "pictures").over(self.decode(rows)))
            except OSError as error:
                failed = str(error)
        failed = distributed.broadcast(failed)
        if not there and not failed:
            images, failed = self._open(key)
        if images is not None and not all(map(images.agrees, sample, decoded)):
            images, failed = None, "what it holds differs from the pictures"
        if images is None:
            self.note(f"{what}: not kept, the cache cannot hold them: {failed}")
            return None
        self.note(f"{what}: {len(rows)} {'from' if there else 'kept in'} the cache ({size / 1e6:.1f} MB)")
        return images

    def _open(self, key: str) -> tuple[DecodedImages | None, str]:
        """Return (entry or None, why an existing entry cannot be used or "")."""
        try:
            return self.cache.read(key, DecodedImages.of), ""
        except OSError as error:
            return None, str(error)

    def decode(self, rows: Mapping[str, Example]) -> Iterator[tuple[str, Tensor]]:
        """Yield (content hash, image). Threads decode some images at once, because Pillow releases the GIL."""
        contents, known = list(rows), KnownFiles()

        def read(row: Example) -> Tensor:
            known.check(row)  # else a changed file's pixels would stay under the old content
            return self.preprocessor.decoded(row.inputs, self.whole)

        with ThreadPoolExecutor(self.threads) as pool:
            for start in range(0, len(contents), CHUNK_IMAGES):
                part = contents[start : start + CHUNK_IMAGES]
                yield from zip(part, pool.map(read, [rows[content] for content in part]), strict=True)


def key_of(p: ImagePreprocessor, whole: bool, rows: Sequence[str]) -> str:
    """Return the key of an entry: the sha256 of the images' content and of all that decides their pixels.

    That is decoding and, unless ``whole``, resizing.
    """
    spec = to_json(p.spec)
    sized = {} if whole else {k: spec[k] for k in ("size", "resize", "interpolation")}
    what = {
        "schema": SCHEMA,
        "pictures": list(rows),
        "channels": p.spec.channels,
        "whole": whole,
        **sized,
        "versions": {name: version(name) for name in ("regraft", "Pillow", "torchvision")},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def write(cache: FeatureCache, key: str, images: Iterable[tuple[str, Tensor]]) -> None:
    """Write an entry from (content hash, image [C, H, W]), one image at a time.

    Raises OSError where the disk or the cache's limit do not take it, and DataError for a file that does not
    read. Both leave nothing behind.
    """

    def fill(folder: Path) -> None:
        index: dict[str, Any] = {"schema": SCHEMA, "key": key, "rows": [], "shapes": [], "checks": []}
        size = 0
        with (folder / "pixels.bin").open("wb") as file:
            for content, image in images:
                pixels = image.permute(1, 2, 0).contiguous().numpy().data
                size += pixels.nbytes
                if size > cache.limit:
                    raise OSError(f"more than its limit of {cache.limit / 1e6:,.0f} MB")
                file.write(pixels)
                index["rows"].append(content)
                index["shapes"].append(pixels.shape)
                index["checks"].append(zlib.crc32(pixels))
        write_index(folder, index)

    cache.put(key, fill)


def no_gain(cache: FeatureCache, decoding: float, size: int, passes: int, workers: int, there: bool) -> str:
    """Return why an entry of ``size`` bytes does not pay; "" where it does.

    ``decoding`` is the time of a pass over the files, in seconds; ``there`` says that the entry exists.
    """
    folder = next((d for d in (cache.root, *cache.root.parents) if d.is_dir()), Path.cwd())
    room = min(cache.limit, shutil.disk_usage(folder).free // 2)
    if not there and size > room:
        return f"since their {size / 1e6:,.0f} MB are more than the {room / 1e6:,.0f} there are"
    reading = size / (COPY_BYTES_PER_S if size < free_memory() / 2 else READ_BYTES_PER_S) / workers
    live, kept = passes * decoding, passes * reading
    if not there:
        kept += decoding + size / COPY_BYTES_PER_S
    if live - kept < MIN_SAVED_S:
        return f"since {passes} passes would decode for {live:.1f} s and take {kept:.1f} s with it"
    return ""


def free_memory() -> int:
    """Return the bytes of memory that the system can hold files in."""
    return int(psutil.virtual_memory().available)


# ---------------------------------------------------------------- an entry


@dataclass
class DecodedImages:
    """Images by content. A process that unpickles them maps the file again."""

    path: Path  # folder of the entry
    shapes: list[tuple[int, int, int]]  # height, width, channels
    checks: list[int]
    place: dict[str, int]  # content hash → number of the image
    starts: NDArray[np.int64]  # of each image's bytes
    pixels: NDArray[np.uint8] | None  # None where the entry was evicted before this process mapped it

    @classmethod
    def of(cls, path: Path, index: Mapping[str, Any]) -> DecodedImages:
        """Map the pixels of an entry. Raises ValueError or KeyError for an entry that has none."""
        if index["schema"] != SCHEMA:
            raise ValueError(f"{path} has schema {index['schema']}")
        shapes = [(int(h), int(w), int(c)) for h, w, c in index["shapes"]]
        starts = np.cumsum([0, *(h * w * c for h, w, c in shapes)])
        pixels = mapped(path / "pixels.bin", int(starts[-1]))
        place = {name: i for i, name in enumerate(index["rows"])}
        if pixels is None or not len(place) == len(shapes) == len(index["checks"]):
            raise ValueError(f"{path} is damaged")
        return cls(path, shapes, index["checks"], place, starts, pixels)

    def get(self, id_: str) -> Tensor | None:
        """Return the image of a row [C, H, W]; None where it is missing or damaged. Do not write to it."""
        i = self.place.get(content_of(id_))
        if i is None or self.pixels is None:
            return None
        flat = self.pixels[self.starts[i] : self.starts[i + 1]]
        if zlib.crc32(flat.data) != self.checks[i]:
            return None
        return torch.from_numpy(flat).view(self.shapes[i]).permute(2, 0, 1)

    def agrees(self, row: Example, image: Tensor) -> bool:
        """Return whether the image of a row equals this one, or there is none of the row."""
        cached = self.get(row.id)
        return cached is None or torch.equal(cached, image)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = mapped(self.path / "pixels.bin", int(self.starts[-1]))


def mapped(file: Path, size: int) -> NDArray[np.uint8] | None:
    """Map a file of ``size`` bytes; None where it has another size. A write would not reach the file."""
    try:
        if size == 0 or file.stat().st_size != size:
            return None
        return np.memmap(file, dtype=np.uint8, mode="c", shape=(size,))
    except OSError:
        return None
