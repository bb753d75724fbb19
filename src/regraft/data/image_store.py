"""Decoded pictures, kept on disk and mapped: a picture is read, decoded and resized once.

ROOT/<key>/index.json     each picture's content hash, shape and checksum; its sha256 beside it
ROOT/<key>/pixels.bin     uint8 [H, W, C], one picture after another

What is kept is what nothing random decides: the whole picture where training crops it at random, else
what evaluation sees of it. The pixels are those of the file to the bit, so no result depends on whether
they were kept. An entry lies among those of the feature cache, is made as they are, and shares their
limit. The pixels are not synced: a picture whose checksum is wrong is read from its file again.
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


TIMED = 8  # pictures that the estimate decodes

COPIED = 2e9  # bytes a second that are checked and written, or read while the system holds them

READ = 500e6  # that come from the disk

WORTH = 0.5  # seconds that must be saved

AT_ONCE = 64  # pictures that are decoded before they are written

PICK = random.SystemRandom()  # of the pictures that are checked: no seed of a run is drawn from

PICTURES = "pictures"  # (PICTURES, split, whole) in Prepared.kept → Kept, or None


def key_of(p: ImagePreprocessor, whole: bool, rows: Sequence[str]) -> str:
    """sha256 of the pictures' content and of all that decoding and, unless ``whole``, resizing are."""
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
    """An entry from (content hash, picture [C, H, W]), streamed to disk.

    Raises OSError where the disk or the cache's limit do not take it, DataError for a file that does
    not read; nothing is left then.
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
    some = [named[name] for name in PICK.sample(list(named), min(TIMED, len(named)))]
    began = time.perf_counter()
    decoded = [preprocessor.certain(e.inputs, whole) for e in some]
    seconds = (time.perf_counter() - began) * len(named) / len(some)
    size = sum(x.numel() for x in decoded) * len(named) // len(some)
    if failed := next(filter(None, distributed.gather_objects([failed])), ""):
        say(f"{what}: not kept, the cache cannot be used: {failed}")
        return None
    why = distributed.broadcast(no_gain(cache, seconds / threads, size, passes, threads, there))
    if why:
        if passes * seconds / threads >= WORTH:  # else nothing was at stake
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
    """(the entry, or None; why one that is there cannot be used, or "")."""
    try:
        return cache.read(key, DecodedImages.of), ""
    except OSError as error:
        return None, str(error)


def shows(kept: DecodedImages, example: Example, picture: Tensor) -> bool:
    """Return whether an entry has this picture, or none of this row: that one is read from its file."""
    found = kept.get(example.id)
    return found is None or torch.equal(found, picture)


def pictures(
    preprocessor: ImagePreprocessor, whole: bool, named: Mapping[str, Example], threads: int
) -> Iterator[tuple[str, Tensor]]:
    """(content hash, picture), some of them decoded at once: Pillow lets other threads run."""
    names, known = list(named), KnownFiles()

    def read(example: Example) -> Tensor:
        known.check(example)  # other pixels would be kept under this content for good
        return preprocessor.certain(example.inputs, whole)

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            yield from zip(part, pool.map(read, [named[name] for name in part]), strict=True)


def no_gain(cache: FeatureCache, decoding: float, size: int, passes: int, workers: int, there: bool) -> str:
    """Why it is not worth it to keep ``size`` bytes that take ``decoding`` seconds a pass; or ""."""
    folder = next((d for d in (cache.root, *cache.root.parents) if d.is_dir()), Path.cwd())
    room = min(cache.limit, shutil.disk_usage(folder).free // 2)
    if not there and size > room:
        return f"since their {size / 1e6:,.0f} MB are more than the {room / 1e6:,.0f} there are"
    reading = size / (COPIED if size < free_memory() / 2 else READ) / workers
    live, kept = passes * decoding, passes * reading
    if not there:
        kept += decoding + size / COPIED
    if live - kept < WORTH:
        return f"since {passes} passes would decode for {live:.1f} s and take {kept:.1f} s with it"
    return ""


def free_memory() -> int:
    """Return the bytes of memory that the system can hold files in."""
    return int(psutil.virtual_memory().available)
