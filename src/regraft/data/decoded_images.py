"""Decoded images of an entry of the cache, mapped from its file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .types import content_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


SCHEMA = 3


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
