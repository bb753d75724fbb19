"""One writer a folder: a second is refused and told by whom; a lock whose holder is gone is taken over."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import psutil
import pytest

from regraft.errors import DiskError, UsageError
from regraft.io import locks
from regraft.io.locks import find_holder, take
from regraft.runs.folder import RunFolder

HOLD = """
import os, sys, time
from pathlib import Path
from regraft.io.locks import take
take(Path(sys.argv[1]))
os.write(1, b"held\\n")
time.sleep(60)
"""

CONTAINERS = (
    shutil.which("unshare")
    and not subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode
)


def write(lock, **changes):
    """A lock file that nobody has an flock on."""
    lock.write_text(json.dumps(asdict(locks.myself(False)) | changes))


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    locks._close_handles()


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.fault(12)
def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path, other):
    with pytest.raises(UsageError, match=f"process {other.pid} on {socket.gethostname()} since 20"):
        take(tmp_path / "lock")
    assert find_holder(tmp_path / "lock").pid == other.pid
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


@pytest.mark.fault(12)
def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    assert find_holder(tmp_path / "lock") is None
    assert take(tmp_path / "lock").pid == other.pid
    assert find_holder(tmp_path / "lock").pid == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


@pytest.mark.fault(12)
def test_a_pid_that_another_process_has_by_now_holds_nothing(tmp_path):
    write(tmp_path / "lock", started=f"{locks.boot()} 1")
    assert take(tmp_path / "lock").pid == os.getpid()


@pytest.mark.parametrize(
    "apart",
    [
        {"host": "elsewhere"},
        {"namespace": "pid:[1]"},
        {"started": "another boot 1"},
        {"host": socket.gethostname() + "-1"},
    ],
)
def test_a_holder_of_which_nothing_is_proven_holds(tmp_path, apart):
    """The pid is unused here, which says nothing of another machine, container or boot."""
    write(tmp_path / "lock", pid=2**22 + 1, **apart)
    with pytest.raises(UsageError, match=r"process 4194305 .*remove .*lock"):
        take(tmp_path / "lock")


@pytest.mark.parametrize("apart", [{"namespace": "pid:[1]"}, {"started": "another boot 1"}, {"host": "elsewhere"}])
def test_an_flock_that_nobody_has_proves_a_holder_gone(tmp_path, monkeypatch, apart):
    """On a disk of this machine's own; elsewhere only if the holder's kernel was this one."""
    for own_disk in (False, True):
        monkeypatch.setattr(locks, "on_own_disk", lambda path, own=own_disk: own)
        write(tmp_path / "lock", flocked=True, **apart)
        same_kernel = "started" not in apart
        assert (find_holder(tmp_path / "lock") is None) == (own_disk or same_kernel)


@pytest.mark.skipif(not CONTAINERS, reason="no pid namespace can be made here")
def test_a_holder_in_another_container_holds_until_it_ends(tmp_path):
    lock = tmp_path / "lock"
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", HOLD, lock]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        record = json.loads(lock.read_text())
        assert record["pid"] < 10 and record["host"] == socket.gethostname()
        with pytest.raises(UsageError, match="in another container"):
            take(lock)
    finally:
        child.kill()
        child.communicate()
    until = time.monotonic() + 60
    while find_holder(lock) is not None and time.monotonic() < until:
        time.sleep(0.05)  # its own kill comes from the kernel, a moment later
    assert take(lock).pid == record["pid"]
    locks.release(lock)


def test_a_worker_that_outlives_a_killed_run_holds_no_lock(tmp_path):
    fork = "if not os.fork(): os.write(1, b'forked\\n') and time.sleep(60)\nos.write("
    code = HOLD.replace("os.write(", fork, 1)
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert {child.stdout.readline(), child.stdout.readline()} == {b"forked\n", b"held\n"}  # the worker runs
    (worker,) = psutil.Process(child.pid).children()
    child.kill()
    child.wait()
    try:
        assert worker.is_running() and find_holder(tmp_path / "lock") is None
    finally:
        worker.kill()
        child.stdout.close()


def test_a_lock_that_is_a_pipe_or_a_link_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "lock")
    assert find_holder(tmp_path / "lock") is None
    with pytest.raises(DiskError, match="no regular file"):
        take(tmp_path / "lock")
    (tmp_path / "other").write_text("mine")
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(DiskError):
        take(tmp_path / "lock")
    assert (tmp_path / "other").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "123\n", "{}", "[1]", '{"pid": 1}'])
def test_a_lock_that_does_not_read_is_nobodys(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    take(tmp_path / "lock")
    assert find_holder(tmp_path / "lock").pid == os.getpid()


def test_of_many_that_take_over_a_stale_lock_one_has_it(tmp_path):
    write(tmp_path / "lock", pid=2**22 + 1)
    code = HOLD.replace("take(Path(sys.argv[1]))", "input()\ntake(Path(sys.argv[1]))")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "lock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    for child in children:
        child.stdin.write(b"go\n")
        child.stdin.flush()
    import select

    won = 0
    for child in children:
        ready, _, _ = select.select([child.stdout], [], [], 60)
        won += bool(ready and child.stdout.readline() == b"held\n")
    for child in children:
        child.kill()
        child.communicate()
    assert won == 1


def test_a_folder_that_is_held_is_refused_before_it_is_touched(tmp_path, other):
    folder = RunFolder(tmp_path, resume=True)
    with pytest.raises(UsageError, match="is being written by process"):
        folder.__enter__()
    assert find_holder(tmp_path / "lock").pid == other.pid


def test_a_lock_that_cannot_be_written_is_a_fault_of_the_disk(tmp_path):
    with pytest.raises(DiskError, match="cannot be written"):
        take(tmp_path / "nowhere" / "lock")


def test_without_proc_a_live_pid_is_believed(monkeypatch):
    monkeypatch.setattr(locks, "started", lambda pid: "")
    assert not locks.myself(False).gone(own_disk=True)


def test_without_proc_psutil_tells_a_pid_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LINUX", False)
    mine = locks.myself(False)
    assert not mine.gone(own_disk=False) and locks.exists(mine.pid)
    assert float(mine.started) == psutil.Process().create_time()
    write(tmp_path / "lock", started=" 1.5")
    assert find_holder(tmp_path / "lock") is None
    write(tmp_path / "lock", pid=2**22 + 1)
    assert find_holder(tmp_path / "lock") is None
