"""One writer at a time: a lock file that says who holds it.

RUN/lock   {"pid", "host", "started", "since"}

A lock whose process is gone is stale and is taken over. ``started`` is when the process began, in the
kernel's own count since boot, so that a pid that was given to another process since is seen through.
Of a process on another machine nothing is known: its lock holds until someone removes it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from . import guarded
from .errors import DiskError, UsageError


@dataclass(frozen=True)
class Holder:
    pid: int
    host: str
    started: str  # "" where the system does not say
    since: str  # for people

    def alive(self) -> bool:
        """Whether the process may still write."""
        if self.host != socket.gethostname():
            return True
        if not exists(self.pid):
            return False
        return not self.started or self.started == started(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder(lock: Path) -> Holder | None:
    """Who a lock file names; None where there is none, or it does not read: nobody holds that."""
    try:
        found = Holder(**guarded.read_json(lock.parent, lock.name))
    except (guarded.NotReadError, TypeError):
        return None
    texts = isinstance(found.host, str) and isinstance(found.started, str)
    return found if texts and type(found.pid) is int and 0 < found.pid < 2**31 else None


def held(lock: Path) -> Holder | None:
    """Who holds a lock and is alive."""
    found = holder(lock)
    return found if found is not None and found.alive() else None


def take(lock: Path) -> Holder | None:
    """Lock for this process; → whom it was taken over from, where that one is gone.

    Raises UsageError, naming the holder, where another process holds it, and DiskError.
    """
    me = Holder(
        os.getpid(), socket.gethostname(), started(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S")
    )
    part = lock.with_name(f".{lock.name}.{me.host}.{me.pid}")
    try:
        with one_at_a_time(lock.parent):
            refuse(lock)
            before = holder(lock)
            part.write_text(json.dumps(asdict(me)) + "\n", encoding="utf-8")
            part.replace(lock)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DiskError(f"{lock} cannot be written: {error.strerror}") from error
    return before


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Between looking at a lock and writing it nobody else does; by the kernel, where it can."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems of a network know no such locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refuse(lock: Path) -> None:
    """Raises UsageError where a living process holds the lock."""
    if (other := held(lock)) is not None:
        hint = "wait for it, or stop it with `kill " + f"{other.pid}`"
        if other.host != socket.gethostname():
            hint = f"if that run is gone, remove {lock}"
        raise UsageError(f"{lock.parent} is being written by {other}: {hint}")


def exists(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def started(pid: int) -> str:
    """When a process began: the boot, and clock ticks since. "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        after_name = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return ""
    return f"{boot} {after_name[19]}"  # field 22 of proc(5)
