"""Freed memory stays in the process (glibc's mallopt), so that the next batch does not fault it in again.

By default glibc returns every freed block above 32 MiB to the system, and the end of the heap above 64 MiB.
A step frees gigabytes of activations, and the next step needs as many. The half million page faults, each
of which clears a page, took half of a training step on two cores, and more of an evaluation batch. See
docs/decisions/019-memory-is-kept.md.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

# parameters of mallopt(3), and the values up to which glibc moves its dynamic thresholds by itself
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

USUAL = {MMAP_THRESHOLD: 1 << 25, TRIM_THRESHOLD: 1 << 26}  # bytes

KEPT = {MMAP_THRESHOLD: 1 << 30, TRIM_THRESHOLD: (1 << 31) - 1}  # bytes; a parameter is a C int

inside, counting = 0, Lock()  # blocks that are open now, in all threads


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in this process inside the block, up to its peak; return it when the last block ends.

    The block has no effect if the C library is not glibc, or if the environment sets these thresholds itself
    (see mallopt(3) and glibc's manual, "Memory Allocation Tunables").
    """
    global inside
    libc = glibc()
    if libc is None or set_by(os.environ):
        yield
        return
    with counting:
        inside += 1
        set_thresholds(libc, KEPT)
    try:
        yield
    finally:
        with counting:
            inside -= 1
            if not inside:
                set_thresholds(libc, USUAL)
                libc.malloc_trim(0)


def set_thresholds(libc: ctypes.CDLL, sizes: Mapping[int, int]) -> None:
    """Set the thresholds above which glibc returns freed memory."""
    for parameter, size in sizes.items():
        libc.mallopt(parameter, size)


def give_back() -> None:
    """Return freed memory to the system. By itself glibc keeps the gaps between arrays that are still in use."""
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(0)


def set_by(environment: Mapping[str, str]) -> bool:
    """Return whether an environment sets glibc's thresholds itself."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
    return not environment.keys().isdisjoint(names) or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")


def glibc() -> ctypes.CDLL | None:
    """Load the C library; None if it is not glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    needed = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in needed) else None
