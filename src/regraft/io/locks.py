"""Locks of folders: a lock file that names its holder, who keeps an flock on it.

RUN/lock   {"pid", "host", "started", "since", "namespace", "flocked"}

The kernel frees an flock however its process ends. A free flock therefore proves that the holder is gone,
if the holder's kernel was this one or no other machine can mount the disk. Without that proof a holder is
gone only if its pid is unused, and only its own pid namespace can tell. ``started`` tells a process from a
later one with the same pid. A holder that is not proven gone holds until someone removes the file.
See docs/decisions/023-locks-and-shared-caches.md and 032-locks-stay.md.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DiskError, UsageError

LINUX = sys.platform == "linux"

MAX_BYTES = 4096  # of a lock file

TAKE_TIMEOUT_S = 2.0  # seconds to wait for a process that only looks at the lock

OWN_DISKS = {  # file systems that no other machine can have mounted
    "apfs",
    "bcachefs",
    "btrfs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "jfs",
    "ntfs",
    "overlay",
    "ramfs",
    "reiserfs",
    "tmpfs",
    "ufs",
    "xfs",
    "zfs",
}

BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

_handles: dict[Path, int] = {}  # lock that this process holds → its open file


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as its lock file names it."""

    pid: int
    host: str
    started: str  # boot and start of the process; "" where the system does not say
    since: str  # local time, for people
    namespace: str = ""  # of pids; "" where the system has none
    flocked: bool = False  # whether the holder keeps an flock on the file

    def here(self) -> bool:
        """Check whether the pid is one of this host, pid namespace and boot."""
        boots = {self.boot(), boot()}
        same = (self.host, self.namespace) == (socket.gethostname(), namespace())
        return same and ("" in boots or len(boots) == 1)

    def boot(self) -> str:
        """Return the id of the boot in which the holder started; "" where it is unknown."""
        return self.started.partition(" ")[0]

    def gone(self, own_disk: bool) -> bool:
        """Check whether the holder is proven gone, given that the flock of its file is free.

        ``own_disk`` says that no other machine can mount the disk of the file.
        """
        if self.flocked and (own_disk or self.boot() == boot() != ""):
            return True
        if not self.here():
            return False
        if not exists(self.pid):
            return True
        return bool(self.started) and self.started != started(self.pid)

    def __str__(self) -> str:
        if not self.pid:
            return "a process that its lock file does not name"
        apart = self.host == socket.gethostname() and not self.here()
        where = f"{self.host}, in another container or before a restart," if apart else self.host
        return f"process {self.pid} on {where} since {self.since}"


UNKNOWN_HOLDER = Holder(0, "", "", "")  # it has the flock, but its file does not read


def myself(flocked: bool) -> Holder:
    """Return this process as a holder."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return Holder(pid, socket.gethostname(), started(pid), now, namespace(), flocked)


def read_holder(lock: Path) -> Holder | None:
    """Return the holder that a lock file names; None where no file is there, or it does not read."""
    try:
        handle = open_regular(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        named = Holder(**json.loads(os.read(handle, MAX_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    finally:
        os.close(handle)
    texts = all(isinstance(v, str) for v in (named.host, named.started, named.namespace))
    numbers = type(named.pid) is int and 0 < named.pid < 2**31 and type(named.flocked) is bool
    return named if texts and numbers else None


def find_holder(lock: Path) -> Holder | None:
    """Return the holder of a lock; None where the lock is free, or its holder is proven gone."""
    named = read_holder(lock)
    if flocked(lock):
        return named or UNKNOWN_HOLDER
    return None if named is None or named.gone(on_own_disk(lock)) else named


def take(lock: Path) -> Holder | None:
    """Take a lock until ``release``; return the holder before, who is proven gone, or None.

    Raises UsageError, naming the holder, where another process holds the lock. Raises DiskError where the
    file cannot be written.
    """
    try:
        with one_at_a_time(lock.parent):
            refuse(lock)
            before = read_holder(lock)
            handle, has_flock = opened(lock)
            try:
                os.ftruncate(handle, 0)
                os.write(handle, (json.dumps(asdict(myself(has_flock))) + "\n").encode())
            except OSError:
                os.close(handle)
                raise
            _handles[lock] = handle
    except OSError as error:
        raise DiskError(f"{lock} cannot be written: {error.strerror}") from error
    return before


def release(lock: Path) -> None:
    """Remove a lock that this process holds."""
    with suppress(OSError), one_at_a_time(lock.parent):
        lock.unlink(missing_ok=True)
    handle = _handles.pop(lock, None)
    if handle is not None:
        os.close(handle)


def opened(lock: Path) -> tuple[int, bool]:
    """Open a lock file and flock it; return (handle, whether the file system has flocks).

    Raises UsageError where another process has the flock.
    """
    until = time.monotonic() + TAKE_TIMEOUT_S
    while True:
        handle = open_regular(lock, os.O_RDWR | os.O_CREAT)
        try:
            has_flock = flock(handle, shared=False)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() > until:
                refuse(lock)
                raise
            time.sleep(0.01)  # a process that only looks frees the flock at once
            continue
        if os.fstat(handle).st_nlink:
            return handle, has_flock
        os.close(handle)  # its holder removed the file meanwhile, so it guards no name


def flocked(lock: Path) -> bool:
    """Check whether a process, this one included, has the flock of a file."""
    try:
        handle = open_regular(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        flock(handle, shared=True)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def flock(handle: int, *, shared: bool) -> bool:
    """Take the flock of an open file; return False where the system or the file system has no flocks.

    Raises BlockingIOError where another process has the flock.
    """
    if os.name != "posix":
        return False
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            raise BlockingIOError(error.errno, "locked") from error
        return False
    return True


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file, without waiting. Raises OSError for a link, a pipe or a device."""
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | more, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other processes from looking at and writing locks of a folder inside the block.

    Does nothing where the system or the file system has no flocks.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no flocks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refuse(lock: Path) -> None:
    """Raise UsageError where a process holds the lock, or is not proven gone."""
    if (other := find_holder(lock)) is not None:
        hint = "wait for it, or stop it with `kill " + f"{other.pid}`"
        if not other.here():
            hint = f"if that run is gone, remove {lock}"
        raise UsageError(f"{lock.parent} is being written by {other}: {hint}")


def on_own_disk(path: Path) -> bool:
    """Check whether no other machine can mount the file system of a path."""
    import psutil

    folder, nearest, kind = path.parent.resolve(), "", ""
    for disk in psutil.disk_partitions(all=True):  # a later mount hides an earlier one at the same place
        if folder.is_relative_to(disk.mountpoint) and len(disk.mountpoint) >= len(nearest):
            nearest, kind = disk.mountpoint, disk.fstype
    return kind in OWN_DISKS


def exists(pid: int) -> bool:
    """Check whether a process of this pid namespace has the pid."""
    if not LINUX:
        import psutil

        return bool(psutil.pid_exists(pid))
    try:  # psutil asks /proc as well, which may be that of another pid namespace
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def namespace() -> str:
    """Return the id of this process's pid namespace; "" where the system has none."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def boot() -> str:
    """Return the id of this boot of the kernel; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def started(pid: int) -> str:
    """Return the boot and the start of a process; "" where the system does not say.

    The start is in clock ticks since the boot on Linux, else in seconds since 1970.
    """
    if not LINUX:
        import psutil

        try:
            return f" {psutil.Process(pid).create_time()}"
        except psutil.Error:
            return ""
    # psutil adds the wall clock, so its time moves when that is set; ticks stay as they are
    name = "self" if pid == os.getpid() else str(pid)  # /proc may be that of another pid namespace
    try:
        after_name = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot()} {after_name[19]}"  # field 22 of proc(5)


def _close_handles() -> None:
    """Close the open lock files, so that a forked worker does not keep the flock of a killed run."""
    for handle in _handles.values():
        os.close(handle)
    _handles.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_handles)
