"""What a process keeps of the memory that it frees."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from regraft.compute.malloc import glibc

# in a process of its own: what other tests left in the heap would be given back too
CODE = """
import json, sys
from contextlib import suppress
from pathlib import Path
import regraft.compute.malloc
light = not {"torch", "numpy"} & set(sys.modules)
import numpy as np

def anonymous():  # MB of this process that are backed by no file
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x]
    return int(line.split()[1]) / 1024

def use():
    first, second = (np.ones(100 << 17) for _ in range(2))  # 100 MB each
    del first, second

use()
found = {"light": light, "before": anonymous()}
with suppress(ZeroDivisionError), regraft.compute.malloc.freed_memory_kept():
    use()
    found["inside"] = anonymous()
    1 / FAILS
found["after"] = anonymous()
use()
found["later"] = anonymous()
print(json.dumps(found))
"""


def seen(fails: bool = False, **environment: str) -> dict[str, float]:
    """MB more than before, at each point."""
    code = CODE.replace("FAILS", str(int(not fails)))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found.pop("light")
    before = found.pop("before")
    return {at: megabytes - before for at, megabytes in found.items()}


@pytest.mark.skipif(glibc() is None, reason="the C library is not glibc")
@pytest.mark.parametrize("fails", [False, True])
def test_inside_freed_memory_stays_and_afterwards_it_goes_back(fails):
    found = seen(fails)
    assert found["inside"] > 150
    assert abs(found["after"]) < 20
    assert abs(found["later"]) < 20  # the thresholds are the usual ones again


@pytest.mark.skipif(glibc() is None, reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "100000", True),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=100000", True),
        ("GLIBC_TUNABLES", "glibc.pthread.rseq=0", False),
        ("MALLOC_ARENA_MAX", "2", False),  # of many a container: another matter
    ],
)
def test_who_has_set_it_is_left_alone(name, value, left):
    assert (seen(**{name: value})["inside"] < 20) == left


class Counting:
    """A libc that was told to keep, and then to trim."""

    def __init__(self):
        self.told = []

    def mallopt(self, parameter, size):
        self.told.append((parameter, size))

    def malloc_trim(self, pad):
        self.told.append("trim")


def test_of_several_callers_the_last_one_gives_it_back(monkeypatch):
    from regraft.compute import malloc as heap

    libc = Counting()
    monkeypatch.setattr(heap, "glibc", lambda: libc)
    monkeypatch.setattr(heap, "set_by", lambda environment: False)
    with ThreadPoolExecutor(1) as elsewhere, heap.freed_memory_kept():
        entered, left = Event(), Event()

        def another():
            with heap.freed_memory_kept():
                entered.set()
                left.wait(60)

        end = elsewhere.submit(another)
        assert entered.wait(60)
        with heap.freed_memory_kept():
            pass
        left.set()
        end.result(60)
        assert set(libc.told) == set(heap.KEPT.items())
    assert libc.told[-3:] == [*heap.USUAL.items(), "trim"]


def test_without_glibc_nothing_is_set(monkeypatch):
    from regraft.compute import malloc as heap

    class Elsewhere:
        def __init__(self, name):
            pass

    monkeypatch.setattr(heap.ctypes, "CDLL", Elsewhere)
    assert heap.glibc() is None
    with heap.freed_memory_kept():
        pass
