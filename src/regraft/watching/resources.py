"""Resources that the processes of a job use, as psutil reads them.

Processor time is counted between two looks, so the first look has none. Memory counts anonymous pages alone
(RssAnon on Linux, the unique set elsewhere), because the kernel can take mapped files back. Bytes read and
written are those of processes that still run; macOS does not tell them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil

MIN_INTERVAL_S = 1.0  # over which processor time is counted, because systems count it in hundredths


@dataclass(frozen=True)
class ResourceUsage:
    """Sums over the processes of a job."""

    processes: int
    threads: int
    cores: float | None  # busy on average since the last look
    memory: int  # bytes
    read: int | None  # bytes, from disk
    written: int | None


@dataclass(frozen=True)
class ProcessUsage:
    """The use of one process."""

    key: tuple[int, float]  # pid and start: pids are used again
    seconds: float  # of processor time
    threads: int
    memory: int  # bytes
    disk: tuple[int, int] | None  # bytes read and written


class ProcessMonitor:
    """A process tree, measured again and again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.before: tuple[float, dict[tuple[int, float], float]] | None = None
        self.cores: float | None = None

    def look(self, root: int) -> ResourceUsage | None:
        """Return what a process and all below it use; None where the process is gone."""
        now, tree = self.clock(), list(process_tree(root))
        if not tree:
            return None
        spent = {process.key: process.seconds for process in tree}
        if self.before is None or not set(spent) & set(self.before[1]):  # another job
            self.before, self.cores = (now, spent), None
        elif now - self.before[0] >= MIN_INTERVAL_S:
            then, earlier = self.before
            used = sum(seconds - earlier.get(key, 0.0) for key, seconds in spent.items())
            self.before, self.cores = (now, spent), max(0.0, used / (now - then))
        known = [process.disk for process in tree if process.disk is not None]
        return ResourceUsage(
            len(tree),
            sum(process.threads for process in tree),
            self.cores,
            sum(process.memory for process in tree),
            sum(read for read, _ in known) if known else None,
            sum(written for _, written in known) if known else None,
        )


def process_tree(root: int) -> Iterator[ProcessUsage]:
    """Yield the use of a process, then of all below it. A process that ends meanwhile is left out."""
    try:
        first = psutil.Process(root)
        tree = [first, *first.children(recursive=True)]
    except psutil.Error:
        return
    for process in tree:
        with suppress(psutil.Error), process.oneshot():
            spent = process.cpu_times()
            yield ProcessUsage(
                (process.pid, process.create_time()),
                spent.user + spent.system,
                process.num_threads(),
                own_memory(process),
                disk_bytes(process),
            )


def own_memory(process: psutil.Process) -> int:
    """Return the bytes of a process that no file backs. Raises psutil.Error."""
    memory = process.memory_info()
    if hasattr(memory, "shared"):  # Linux: the resident pages of files and of shared memory
        return int(memory.rss - memory.shared)
    return int(process.memory_full_info().uss)


def disk_bytes(process: psutil.Process) -> tuple[int, int] | None:
    """Return the bytes that a process read and wrote; None where the system does not tell this user."""
    try:
        counts = process.io_counters()
    except (AttributeError, psutil.AccessDenied):
        return None
    return int(counts.read_bytes), int(counts.write_bytes)


def launcher(pid: int) -> int:
    """Return the pid of the process that started a rank; ``pid`` itself where that is gone or is init."""
    with suppress(psutil.Error):
        if (parent := psutil.Process(pid).ppid()) > 1:
            return int(parent)
    return pid
