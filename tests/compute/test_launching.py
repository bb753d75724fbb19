"""The launcher names a rank that fails, ends the others, and leaves nothing; ranks here import no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import pytest

from listeners import is_loopback, on_loopback_alone
from regraft.commands import launch as launching
from regraft.commands.launch import launch, loopback_name

RANK = """
import os, signal, sys, time
from pathlib import Path
from regraft.compute import launched
from regraft.compute.launched import end_with_launcher
end_with_launcher()
rank, out = int(os.environ["RANK"]), Path(sys.argv[1])
def save(*_):
    (out / f"saved-{rank}").write_text("")
    os._exit(143)
signal.signal(signal.SIGTERM, save)
(out / f"up-{rank}").write_text(str(os.getpid()))
while len(list(out.glob("up-*"))) < 2: time.sleep(0.02)
"""
WAIT = "time.sleep(60)"


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Let ``launch`` start ranks of the given code, in a folder that looks like a run."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("log.txt", "plan.toml"):
        (out / name).write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(launching, "END_TIMEOUT_S", 1.0)
    before = psutil.Process().children()  # of fixtures that other tests share
    real = subprocess.Popen

    def start(code):
        def popen(command, **how):
            return real([sys.executable, "-c", RANK + code, str(out)], **how)

        monkeypatch.setattr(launching.subprocess, "Popen", popen)
        return out

    yield start
    assert not list((tmp_path / "tmp").iterdir())
    assert set(psutil.Process().children()) <= set(before)


@pytest.mark.parametrize(("number", "more"), [(9, "; perhaps out of memory"), (11, "")])
def test_a_rank_that_is_killed_is_named_with_its_signal(ranks, capfd, number, more):
    out = ranks(f"os.kill(os.getpid(), {number}) if rank == 1 else {WAIT}")
    began = time.monotonic()
    assert launch(2, [], out) == 128 + number
    assert time.monotonic() - began < 60
    name = signal.Signals(number).name
    sentence = f"rank 1 of 2 was killed (signal {number}, {name}{more}): go on with `regraft fit --resume {out}`"
    assert capfd.readouterr().err == f"RankError: {sentence}\n"
    assert json.loads((out / "result.json").read_text())["error"] == sentence
    assert not (out / "lock").exists()


def test_a_rank_that_stays_stopped_is_named_and_the_others_end(ranks, capfd, monkeypatch):
    monkeypatch.setattr(launching, "MAX_STOPPED_LOOKS", 5)
    out = ranks(f"os.kill(os.getpid(), signal.SIGSTOP) if rank == 0 else {WAIT}")
    assert launch(2, [], out) == 128 + signal.SIGSTOP
    sentence = f"rank 0 of 2 was stopped (signal {int(signal.SIGSTOP)}, SIGSTOP): go on with"
    assert sentence in capfd.readouterr().err
    assert sentence in json.loads((out / "result.json").read_text())["error"]
    assert (out / "saved-1").exists()


def test_a_rank_that_is_stopped_for_a_moment_goes_on(ranks, monkeypatch):
    out = ranks("os.kill(os.getpid(), signal.SIGSTOP) if rank else time.sleep(1)")

    def go_on():
        while not (out / "up-0").exists() or not (out / "up-1").exists():
            time.sleep(0.02)
        rank = psutil.Process(int((out / "up-1").read_text()))
        while rank.status() != psutil.STATUS_STOPPED:
            time.sleep(0.02)
        time.sleep(0.5)
        rank.resume()

    thread = threading.Thread(target=go_on)
    thread.start()
    assert launch(2, [], out) == 0
    thread.join()
    assert not (out / "result.json").exists()


def test_why_one_rank_alone_failed_is_what_the_run_says(ranks, capfd):
    """The launcher says it, since rank 0 knows of a lost connection at most."""
    out = ranks(f"""
if rank == 0: {WAIT}
launched.report("DataError: row 7 does not read", "row 7 does not read")
sys.exit(3)""")
    (out / "result.json").write_text('{"status": "failed", "error": "third_party/gloo GLHF!"}')
    assert launch(2, [], out) == 3
    assert capfd.readouterr().err == "DataError: row 7 does not read\n"
    result = json.loads((out / "result.json").read_text())
    assert result["error"] == "row 7 does not read"


def test_what_a_rank_told_may_hold_no_commands_to_a_terminal(ranks, capfd):
    out = ranks(f"""
if rank == 0: {WAIT}
launched.report("DataError: a\\x1b[2J", "a\\x1b[2J")
sys.exit(3)""")
    assert launch(2, [], out) == 3
    assert capfd.readouterr().err == "DataError: a\\u001b[2J\n"


def test_what_all_ranks_see_rank_0_alone_says(ranks, capfd):
    out = ranks("""
launched.report("PlanError: no", "no")
if rank == 0:
    time.sleep(0.5)
    print("PlanError: no", file=sys.stderr)
sys.exit(2 + rank)""")
    assert launch(2, [], out) == 2
    assert capfd.readouterr().err == "PlanError: no\n"
    assert not (out / "result.json").exists()  # it is rank 0 that writes it


def test_a_rank_that_ends_without_a_word_is_named(ranks, capfd):
    out = ranks("sys.exit(1) if rank == 0 else None")
    assert launch(2, [], out) == 1
    assert "rank 0 of 2 ended with exit code 1 and gave no reason" in capfd.readouterr().err


@pytest.mark.fault(24)
def test_ranks_end_soon_when_their_launcher_is_killed(tmp_path):
    code = f"""
import subprocess, sys
from pathlib import Path
from regraft.commands import launch as launching
real = subprocess.Popen
launching.subprocess.Popen = lambda command, **how: real([sys.executable, "-c", {RANK + WAIT!r}, sys.argv[1]], **how)
launching.launch(2, [], Path(sys.argv[1]))
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    out = tmp_path / "run"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(out)], env=environment) as launcher:
        until = time.monotonic() + 60
        while len(list(out.glob("up-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        left = psutil.Process(launcher.pid).children()
        launcher.kill()
    assert len(left) == 2
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive and (out / "saved-0").exists() and (out / "saved-1").exists()


@pytest.fixture
def interrupts():
    """SIGINT as on a terminal: what starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_launcher_passes_a_signal_on_and_exits_with_it(ranks, interrupts, capfd):
    out = ranks(WAIT)

    def interrupt():
        while len(list(out.glob("up-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert launch(2, [], out) == 130
    thread.join()
    assert (out / "saved-0").exists() and (out / "saved-1").exists()
    assert capfd.readouterr().err == "" and not (out / "result.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ranks_are_given_a_private_folder_and_the_loopback_alone(ranks, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # of a cluster: here it would open a port
    out = ranks("""
folder = Path(os.environ["REGRAFT_RANKS"])
mode = oct(folder.stat().st_mode & 0o777) + oct(folder.parent.stat().st_mode & 0o777)
said = [mode, os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]]
said += [os.environ[n] for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
said += ["REGRAFT_LAUNCHER" in os.environ, sys.stdin.read()]
(out / f"said-{rank}").write_text(repr(said))""")
    assert launch(2, [], out) == 0
    lo = loopback_name()
    for rank in ("0", "1"):
        said = ["0o7000o700", lo, f"={lo}", rank, rank, "2", False, ""]
        assert (out / f"said-{rank}").read_text() == repr(said)


def test_a_listener_on_every_address_would_be_found():
    with socket.socket() as wide:
        wide.bind(("0.0.0.0", 0))
        wide.listen()
        with pytest.raises(AssertionError, match=r"0\.0\.0\.0"):
            on_loopback_alone(os.getpid())
    assert is_loopback("::1") and not is_loopback("::") and not is_loopback("fe80::1%eth0")


def test_the_launcher_imports_no_torch():
    code = "import sys, regraft.commands.launch; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
