"""Reading many small files takes memory and work in proportion to their number."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from regraft.data.loading import load_data
from regraft.data.types import DataOptions
from regraft.tasks.classification import Classification


def write(folder: Path, count: int) -> Path:
    """So many pictures of 2 × 2 pixels, all different, in ten classes."""
    for c in range(10):
        (folder / f"c{c}").mkdir(parents=True)
    for i in range(count):
        (folder / f"c{i % 10}" / f"{i}.pgm").write_bytes(b"P5 2 2 255\n" + i.to_bytes(4, "big"))
    return folder


def calls(function) -> int:
    """How many calls of Python and C functions it makes, in all threads."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count


@pytest.mark.fault(60)
def test_the_work_is_linear_in_the_number_of_files(tmp_path):
    task = Classification()

    def load(folder):
        return load_data(DataOptions(folder), task.make, task.strata)

    load(write(tmp_path / "first", 100))  # what is imported and cached once
    few, many = (write(tmp_path / str(n), n) for n in (250, 1000))
    ratio = calls(lambda: load(many)) / calls(lambda: load(few))
    assert ratio < 4.5  # quadratic: 16


MEASURE = """
import sys
from pathlib import Path
from regraft.data.loading import load_data
from regraft.tasks.classification import Classification
from regraft.data.types import DataOptions

def peak():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def anonymous():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

task = Classification()
load_data(DataOptions(Path(sys.argv[1])), task.make, task.strata)
before, most = anonymous(), peak()
splits, _ = load_data(DataOptions(Path(sys.argv[2])), task.make, task.strata)
print(len(splits.train) + len(splits.val) + len(splits.test), anonymous() - before, peak() - most)
"""


@pytest.mark.slow
@pytest.mark.fault(60)
def test_many_small_files_are_read_in_bounded_memory(tmp_path):
    count = 20_000
    few, many = write(tmp_path / "few", 100), write(tmp_path / "many", count)
    done = subprocess.run([sys.executable, "-c", MEASURE, few, many], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, kept, most = map(int, done.stdout.split())
    assert rows == count
    assert kept < 3 * count and most < 5 * count  # KiB: 3 and 5 kB a file
