"""One writer a folder: a second is refused and told by whom; a lock whose holder is gone is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest

from regraft import locks
from regraft.errors import DiskError, UsageError
from regraft.locks import Holder, held, take
from regraft.runfiles import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from regraft.locks import take
take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.fault(12)
def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path, other):
    with pytest.raises(UsageError, match=f"process {other.pid} on {socket.gethostname()} since 20"):
        take(tmp_path / "lock")
    assert held(tmp_path / "lock").pid == other.pid
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


@pytest.mark.fault(12)
def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    assert held(tmp_path / "lock") is None
    assert take(tmp_path / "lock").pid == other.pid
    assert held(tmp_path / "lock").pid == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


@pytest.mark.fault(12)
def test_a_pid_that_another_process_has_by_now_holds_nothing(tmp_path, other):
    record = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(record | {"started": "another boot 1"}))
    assert take(tmp_path / "lock").pid == other.pid
    assert held(tmp_path / "lock").pid == os.getpid()


def test_of_another_machine_nothing_is_known_so_its_lock_holds(tmp_path):
    there = Holder(1, "elsewhere", "x", "2026-01-01 00:00:00")
    (tmp_path / "lock").write_text(json.dumps(asdict(there)))
    with pytest.raises(UsageError, match=r"process 1 on elsewhere .*remove .*lock"):
        take(tmp_path / "lock")


@pytest.mark.parametrize("text", ["", "123\n", "{}", "[1]", '{"pid": 1}'])
def test_a_lock_that_does_not_read_is_nobodys(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    take(tmp_path / "lock")
    assert held(tmp_path / "lock").pid == os.getpid()


def test_of_many_that_take_over_a_stale_lock_one_has_it(tmp_path):
    (tmp_path / "lock").write_text(
        json.dumps(asdict(Holder(2**22 + 1, socket.gethostname(), "", "")))
    )
    code = HOLD.replace("take(Path(sys.argv[1]))", "input()\ntake(Path(sys.argv[1]))")
    children = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(6)
    ]  # fmt: skip
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
    assert held(tmp_path / "lock").pid == other.pid


def test_a_lock_that_cannot_be_written_is_a_fault_of_the_disk(tmp_path):
    with pytest.raises(DiskError, match="cannot be written"):
        take(tmp_path / "nowhere" / "lock")


def test_without_proc_a_live_pid_is_believed(monkeypatch):
    monkeypatch.setattr(locks, "started", lambda pid: "")
    assert Holder(os.getpid(), socket.gethostname(), "", "").alive()
