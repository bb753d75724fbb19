"""What becomes of the memory that a batch frees: it is kept for the next batch.

By default glibc hands every block above 32 MiB back to the system when it is freed, and the end of the
heap above 64 MiB. A step frees gigabytes of activations and the next one asks for as many: half a million
page faults, for each of which the system clears a page, took half of a training step on two cores, and more of
a batch that is only judged. See docs/decisions/019-memory-is-kept.md.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

# mallopt(3): its parameters, and what glibc itself goes up to where none is set (the dynamic thresholds)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

USUAL = {MMAP_THRESHOLD: 1 << 25, TRIM_THRESHOLD: 1 << 26}  # bytes

KEPT = {MMAP_THRESHOLD: 1 << 30, TRIM_THRESHOLD: (1 << 31) - 1}  # bytes; a parameter is a C int

inside, counting = 0, Lock()  # how many callers there are now, in all threads


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, this process keeps the memory that it frees, up to its peak; when the last caller is out, it
    goes back.

    Nothing changes where the C library is not glibc, or where the environment sets these thresholds itself
    (see mallopt(3) and glibc's manual, "Memory Allocation Tunables").
    """
    libc = glibc()
    if libc is None or set_by(os.environ):
        yield
        return
    start_keeping(libc)
    try:
        yield
    finally:
        stop_keeping(libc)


def start_keeping(libc: ctypes.CDLL) -> None:
    global inside
    with counting:
        inside += 1
        for parameter, size in KEPT.items():
            libc.mallopt(parameter, size)


def stop_keeping(libc: ctypes.CDLL) -> None:
    global inside
    with counting:
        inside -= 1
        if inside:
            return
        for parameter, size in USUAL.items():
            libc.mallopt(parameter, size)
        libc.malloc_trim(0)


def give_back() -> None:
    """Return memory that was freed to the system. glibc keeps what many arrays leave between those in use."""
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(0)


def set_by(environment: Mapping[str, str]) -> bool:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
    return not environment.keys().isdisjoint(names) or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")


def glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    needed = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in needed) else None
