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
import re
import shutil
import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ..compute import distributed
from ..io.progress import stage
from .columns import ByName, ids_of
from .decoded_images import SCHEMA, DecodedImages
from .images import KnownFiles
from .preprocessing import ImagePreprocessor, to_json, whole_for
from .readers import ImageReader
from .store import write_index
from .types import content_of

if TYPE_CHECKING:
    from torch import Tensor

    from .batches import Batches
    from .store import FeatureCache
    from .types import Example


TIMED_IMAGES = 8  # decoded to estimate the time of all

COPY_BYTES_PER_S = 2e9  # to check and write, or to read from the system's file cache

READ_BYTES_PER_S = 500e6  # to read from the disk

MIN_SAVED_S = 0.5  # seconds that an entry must save

CHUNK_IMAGES = 64  # decoded before they are written

RNG = random.SystemRandom()  # picks the images to check, so that no seed of a run is used

PICTURES = "pictures"  # (PICTURES, split, whole) in Prepared.kept → Kept, or None


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


def write(cache: FeatureCache, key: str, pictures: Iterator[tuple[str, Tensor]]) -> None:
    """Write an entry from (content hash, image [C, H, W]), one image at a time.

    Raises OSError where the disk or the cache's limit do not take it, and DataError for a file that does not
    read. Both leave nothing behind.
    """

    def fill(folder: Path) -> None:
        index: dict[str, Any] = {"schema": SCHEMA, "key": key, "rows": [], "shapes": [], "checks": []}
        size = 0
        with (folder / "pixels.bin").open("wb") as file:
            for name, picture in pictures:
                pixels = picture.permute(1, 2, 0).contiguous().numpy().data
                size += pixels.nbytes
                if size > cache.limit:
                    raise OSError(f"more than its limit of {cache.limit / 1e6:,.0f} MB")
                file.write(pixels)
                index["rows"].append(name)
                index["shapes"].append(pixels.shape)
                index["checks"].append(zlib.crc32(pixels))
        write_index(folder, index)

    cache.put(key, fill)


def keep(
    batches: Batches,
    split: str,
    examples: Sequence[Example],
    cache: FeatureCache | None,
    passes: int,
    settled: dict[Hashable, Any],
    say: Callable[[str], None],
) -> None:
    """Let batches of some of a split's ``examples`` take their pictures from an entry that is there, or
    put there now where that pays over so many ``passes``; else say why not. ``settled`` remembers."""
    reader = batches.reader
    rows = list(map(content_of, ids_of(examples)))
    if (
        cache is None
        or not isinstance(reader, ImageReader)
        or not all(re.fullmatch("[0-9a-f]{16}", row) for row in rows)  # else no content hash
    ):
        return
    whole = whole_for(reader.augment)
    key = (PICTURES, split, whole)
    if key not in settled:
        named, threads = ByName(rows, examples), max(1, reader.workers)
        settled[key] = entry(cache, reader.preprocessor, whole, named, split, passes, threads, say)
    batches.reader = reader.with_images(settled[key])


def entry(
    cache: FeatureCache,
    preprocessor: ImagePreprocessor,
    whole: bool,
    named: Mapping[str, Example],
    split: str,
    passes: int,
    threads: int,
    say: Callable[[str], None],
) -> DecodedImages | None:
    """The entry of these pictures, from the cache or put there by the first process; None where that is
    not worth it."""
    key, what = key_of(preprocessor, whole, list(named)), f"decoded pictures of {split}"
    kept, failed = opened(cache, key)
    there = not distributed.any_rank(kept is None)
    # at random, since they are also what is checked of an entry
    some = [named[name] for name in RNG.sample(list(named), min(TIMED_IMAGES, len(named)))]
    began = time.perf_counter()
    decoded = [preprocessor.certain(e.inputs, whole) for e in some]
    seconds = (time.perf_counter() - began) * len(named) / len(some)
    size = sum(x.numel() for x in decoded) * len(named) // len(some)
    if failed := next(filter(None, distributed.gather_objects([failed])), ""):
        say(f"{what}: not kept, the cache cannot be used: {failed}")
        return None
    why = distributed.broadcast(no_gain(cache, seconds / threads, size, passes, threads, there))
    if why:
        if passes * seconds / threads >= MIN_SAVED_S:  # else nothing was at stake
            say(f"{what}: not kept, {why}")
        return None
    if not there and distributed.rank() == 0:
        try:
            seen = stage(what, len(named), "pictures")
            write(cache, key, seen.over(pictures(preprocessor, whole, named, threads)))
        except OSError as error:
            failed = str(error)
    failed = distributed.broadcast(failed)
    if not there and not failed:
        kept, failed = opened(cache, key)
    if kept is not None and not all(shows(kept, e, picture) for e, picture in zip(some, decoded, strict=True)):
        kept, failed = None, "what it holds differs from the pictures"
    if kept is None:
        say(f"{what}: not kept, the cache cannot hold them: {failed}")
        return None
    say(f"{what}: {len(named)} {'from' if there else 'kept in'} the cache ({size / 1e6:.1f} MB)")
    return kept


def opened(cache: FeatureCache, key: str) -> tuple[DecodedImages | None, str]:
    """Return (entry or None, why an existing entry cannot be used or "")."""
    try:
        return cache.read(key, DecodedImages.of), ""
    except OSError as error:
        return None, str(error)


def shows(kept: DecodedImages, example: Example, picture: Tensor) -> bool:
    """Return whether an entry's image of a row equals this one, or the entry has none of the row."""
    cached = kept.get(example.id)
    return cached is None or torch.equal(cached, picture)


def pictures(
    preprocessor: ImagePreprocessor, whole: bool, named: Mapping[str, Example], threads: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield (content hash, image). Threads decode some images at once, because Pillow releases the GIL."""
    names, known = list(named), KnownFiles()

    def read(example: Example) -> Tensor:
        known.check(example)  # else a changed file's pixels would stay under the old content
        return preprocessor.certain(example.inputs, whole)

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), CHUNK_IMAGES):
            part = names[start : start + CHUNK_IMAGES]
            yield from zip(part, pool.map(read, [named[name] for name in part]), strict=True)


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
