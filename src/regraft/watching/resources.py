"""What the processes of a job use, from /proc of proc(5); elsewhere that is not known.

Processor time is that since the last look, so a first look has none. Memory is what is a process's own
(RssAnon): mapped files are the kernel's to take back. Bytes read and written are those of processes
that are still there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

SHORTEST = 1.0  # seconds over which processor time is counted: the kernel counts in hundredths


@dataclass(frozen=True)
class Process:
    parent: int
    started: str
    seconds: float  # of processor time
    threads: int


@dataclass(frozen=True)
class ResourceUsage:
    processes: int
    threads: int
    cores: float | None  # busy on average since the last look
    memory: int  # bytes
    read: int | None  # bytes, from disk
    written: int | None


class ProcessMonitor:
    """Looks at one process tree, again and again."""

    def __init__(self, proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> None:
        self.proc, self.clock = proc, clock
        self.before: tuple[float, dict[tuple[int, str], float]] | None = None
        self.cores: float | None = None

    def look(self, root: int) -> ResourceUsage | None:
        """None where the system does not say, or the process is gone."""
        now, everything = self.clock(), processes(self.proc)
        tree = below(everything, root)
        if not tree:
            return None
        spent = {(pid, everything[pid].started): everything[pid].seconds for pid in tree}
        if self.before is None or not set(spent) & set(self.before[1]):  # another job
            self.before, self.cores = (now, spent), None
        elif now - self.before[0] >= SHORTEST:
            then, earlier = self.before
            used = sum(seconds - earlier.get(key, 0.0) for key, seconds in spent.items())
            self.before, self.cores = (now, spent), max(0.0, used / (now - then))
        memory = [numbers(self.proc / str(pid) / "status").get("RssAnon", 0) for pid in tree]
        disk = [numbers(self.proc / str(pid) / "io") for pid in tree]
        known = [d for d in disk if "read_bytes" in d and "write_bytes" in d]
        return ResourceUsage(
            len(tree),
            sum(everything[pid].threads for pid in tree),
            self.cores,
            1024 * sum(memory),
            sum(d["read_bytes"] for d in known) if known else None,
            sum(d["write_bytes"] for d in known) if known else None,
        )


def processes(proc: Path) -> dict[int, Process]:
    """pid → what is known of it."""
    found: dict[int, Process] = {}
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    for place in proc.iterdir() if proc.is_dir() else ():
        if not place.name.isdigit():
            continue
        try:
            text = (place / "stat").read_text(errors="replace")
            # a name may hold anything, brackets too; fields from the third on follow the last one
            f = text.rpartition(")")[2].split()
            seconds = (int(f[11]) + int(f[12])) / ticks
            found[int(place.name)] = Process(int(f[1]), f[19], seconds, int(f[17]))
        except (OSError, ValueError, IndexError):  # it has gone meanwhile
            continue
    return found


def below(everything: dict[int, Process], root: int) -> list[int]:
    """A process and all that came from it."""
    children: dict[int, list[int]] = {}
    for pid, process in everything.items():
        children.setdefault(process.parent, []).append(pid)
    found, waiting = list[int](), [root] if root in everything else []
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def launcher(pid: int, proc: Path = PROC) -> int:
    """The process that started this one and its like, where several share the work."""
    parent = processes(proc).get(pid)
    return parent.parent if parent is not None and parent.parent > 1 else pid


def numbers(path: Path) -> dict[str, int]:
    """``Name: 12 kB`` lines of a file of /proc; none where it may not be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    words = ((name, rest.split()) for name, _, rest in pairs)
    return {name: int(w[0]) for name, w in words if w and w[0].isdigit()}
