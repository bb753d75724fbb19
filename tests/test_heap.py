"""What a process keeps of the memory that it frees."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regraft.heap import freed_memory_kept, glibc

MB = 1 << 20
here = pytest.mark.skipif(glibc() is None, reason="the C library is not glibc")


def anonymous() -> int:
    """Bytes of this process that are backed by no file."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x]
    return int(line.split()[1]) * 1024


def use(megabytes: int = 200) -> None:
    """Two blocks, the first of which is freed first, as activations are."""
    first, second = (torch.ones(megabytes * MB // 8) for _ in range(2))
    del first, second
    gc.collect()


@here
def test_inside_freed_memory_stays_and_afterwards_it_goes_back():
    use()
    before = anonymous()
    with freed_memory_kept():
        use()
        inside = anonymous()
    after = anonymous()
    use()
    assert inside - before > 150 * MB
    assert abs(after - before) < 50 * MB
    assert abs(anonymous() - before) < 50 * MB  # the thresholds are the usual ones again


@here
def test_it_goes_back_after_an_error_too():
    use()
    before = anonymous()
    with pytest.raises(ValueError, match="in a step"), freed_memory_kept():
        use()
        raise ValueError("in a step")
    assert abs(anonymous() - before) < 50 * MB


@here
@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "100000", True),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=100000", True),
        ("GLIBC_TUNABLES", "glibc.pthread.rseq=0", False),
        ("MALLOC_ARENA_MAX", "2", False),  # of many a container: another matter
    ],
)
def test_who_has_set_it_is_left_alone(monkeypatch, name, value, left):
    monkeypatch.setenv(name, value)
    use()
    before = anonymous()
    with freed_memory_kept():
        use()
        assert (abs(anonymous() - before) < 50 * MB) == left


@here
def test_without_mallopt_nothing_happens(monkeypatch):
    monkeypatch.setattr("regraft.heap.glibc", lambda: None)
    use()
    before = anonymous()
    with freed_memory_kept():
        use()
        assert abs(anonymous() - before) < 50 * MB


def test_it_needs_nothing_heavy():
    code = "import sys, regraft.heap; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
