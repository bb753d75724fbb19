"""Random numbers by key: equal keys, as (seed, epoch, row), draw equal numbers in any order of use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

Key = tuple[int, int, str]  # (seed, epoch, id)


def stable(*parts: object) -> int:
    """Return 63 bits that are a function of the parts, equal in every process and version."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def drawing(key: Key) -> Iterator[None]:
    """Seed torch's CPU generator by ``key`` inside the block; restore it afterwards.

    torch.manual_seed would seed every accelerator too, and format a stack trace for each.
    """
    import torch

    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(stable(*key))
    try:
        yield
    finally:
        generator.set_state(before)
