"""Random numbers by key: the same (seed, epoch, row) draws the same numbers, whatever came before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

Key = tuple[int, int, str]  # (seed, epoch, id)


def stable(*parts: object) -> int:
    """63 bits that are a function of the parts, the same in every process and version."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def drawing(key: Key) -> Iterator[None]:
    """torch's CPU generator at a function of ``key`` inside, as it was afterwards.

    Not torch.manual_seed: that turns to every accelerator too, and formats a stack trace for each.
    """
    import torch

    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(stable(*key))
    try:
        yield
    finally:
        generator.set_state(before)
