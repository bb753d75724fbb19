"""One writer at a time: a lock file that its holder keeps an flock on, and that says who it is.

RUN/lock   {"pid", "host", "started", "since", "namespace", "flocked"}

The kernel frees an flock when its process ends, however it ends, so an flock that nobody has proves
that the holder is gone: where this kernel is the holder's, or the disk is this machine's own. Without
that proof a holder is gone only if its pid is unused, and only this pid namespace can say that.
``started`` is the boot and the clock ticks since, because pids are used again. A holder of which
nothing is proven holds until someone removes the file.
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

LARGEST = 4096  # bytes of a lock file

PATIENCE_S = 2.0  # for those that only look whether a lock is held

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

_handles: dict[Path, int] = {}  # lock → its open file, for as long as this process holds it


@dataclass(frozen=True)
class Holder:
    pid: int
    host: str
    started: str  # "" where the system does not say
    since: str  # for people
    namespace: str = ""  # of pids; "" where there are none
    flocked: bool = False  # whether it keeps an flock on the file

    def here(self) -> bool:
        """Return whether its pid means a process of this namespace and boot."""
        boots = {self.boot(), boot()}
        same = (self.host, self.namespace) == (socket.gethostname(), namespace())
        return same and ("" in boots or len(boots) == 1)

    def boot(self) -> str:
        return self.started.partition(" ")[0]

    def gone(self, own_disk: bool) -> bool:
        """Return whether it is proven to be gone, given that nobody has an flock on its file."""
        if self.flocked and (own_disk or self.boot() == boot() != ""):
            return True
        if not self.here():
            return False
        if not exists(self.pid):
            return True
        return bool(self.started) and self.started != started(self.pid)

    def __str__(self) -> str:
        if not self.pid:
            return "a process that has not said who it is"
        apart = self.host == socket.gethostname() and not self.here()
        where = f"{self.host}, in another container or before a restart," if apart else self.host
        return f"process {self.pid} on {where} since {self.since}"


NOBODY_KNOWN = Holder(0, "", "", "")  # has the flock, and nothing that reads is in the file


def myself(flocked: bool) -> Holder:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return Holder(pid, socket.gethostname(), started(pid), now, namespace(), flocked)


def holder(lock: Path) -> Holder | None:
    """Return who a lock file names; None where there is none, or it does not read."""
    try:
        handle = open_regular(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        found = Holder(**json.loads(os.read(handle, LARGEST)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    finally:
        os.close(handle)
    texts = all(isinstance(v, str) for v in (found.host, found.started, found.namespace))
    numbers = type(found.pid) is int and 0 < found.pid < 2**31 and type(found.flocked) is bool
    return found if texts and numbers else None


def held(lock: Path) -> Holder | None:
    """Return who holds a lock; None where nobody does, or the holder is proven to be gone."""
    who = holder(lock)
    if flocked(lock):
        return who or NOBODY_KNOWN
    return None if who is None or who.gone(on_own_disk(lock)) else who


def take(lock: Path) -> Holder | None:
    """Lock for this process until ``release``; → whom it was taken over from, if anybody.

    Raises UsageError, naming the holder, where another process holds it, and DiskError.
    """
    try:
        with one_at_a_time(lock.parent):
            refuse(lock)
            before = holder(lock)
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
    """Open a lock file and flock it; → (handle, whether the file system has flocks).

    Raises UsageError where another process has it.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        handle = open_regular(lock, os.O_RDWR | os.O_CREAT)
        try:
            has_flock = flock(handle, shared=False)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() > until:
                refuse(lock)
                raise
            time.sleep(0.01)  # a process that only looks lets go of it at once
            continue
        if os.fstat(handle).st_nlink:
            return handle, has_flock
        os.close(handle)  # its holder removed it meanwhile, so it guards no name


def flocked(lock: Path) -> bool:
    """Return whether a process, this one too, has the flock of a file."""
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
    """Flock an open file; → False where the system or the file system has no flocks.

    Raises BlockingIOError where another has it.
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
    """Open a regular file; a link, a pipe or a device raises OSError and is not waited for."""
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | more, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle


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
    """Raises UsageError where a process holds the lock, or may hold it."""
    if (other := held(lock)) is not None:
        hint = "wait for it, or stop it with `kill " + f"{other.pid}`"
        if not other.here():
            hint = f"if that run is gone, remove {lock}"
        raise UsageError(f"{lock.parent} is being written by {other}: {hint}")


def on_own_disk(path: Path) -> bool:
    """Return whether no other machine can write to the file system of a path."""
    import psutil

    where, found = path.parent.resolve(), ("", "")
    for disk in psutil.disk_partitions(all=True):  # of those on one place the last one counts
        if where.is_relative_to(disk.mountpoint) and len(disk.mountpoint) >= len(found[0]):
            found = (disk.mountpoint, disk.fstype)
    return found[1] in OWN_DISKS


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
    """Return the name of this process's pid namespace; "" where the system has none."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def boot() -> str:
    """Return the name of this boot of the kernel; "" where the system does not say."""
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


def _let_go() -> None:
    for handle in _handles.values():
        os.close(handle)
    _handles.clear()


if hasattr(os, "register_at_fork"):  # a forked worker would keep the flock of a run that was killed
    os.register_at_fork(after_in_child=_let_go)
