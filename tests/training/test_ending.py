"""How the command ends its process: at once, and with nothing lost."""

import os
import subprocess
import sys

import pytest

# "taken apart" is said by the interpreter's own way out alone
CODE = """
import atexit, os, sys, threading, time
{before}
class Kept:
    def __del__(self, write=os.write):
        write(2, b"taken apart")
kept = Kept()
kept.itself = kept  # so that it goes with its module, and not before
{handler}
sys.argv = ["regraft", *{arguments!r}]
from regraft.__main__ import command
command()
"""
TORCH = "import torch"
WAIT = "threading.main_thread().join()"  # until the command is through
THREAD = f"import torch; threading.Thread(target=lambda: ({WAIT}, print('thread ended'))).start()"
DAEMON = "import torch; threading.Thread(target=lambda: time.sleep(60), daemon=True).start()"
NOWHERE = ["fit", "nowhere", "--source", "none", "--out", "x"]
PROFILE = "import torch; sys.setprofile(lambda *of: None)"


def ended(before: str, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    handler = 'atexit.register(print, "handlers ran")'
    code = CODE.format(before=before, arguments=arguments, handler=handler)
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV_")} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("before", [TORCH, DAEMON])
@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (NOWHERE, 3)])
def test_with_torch_it_ends_at_once_and_loses_no_output(before, arguments, status):
    run = ended(before, arguments)
    assert run.returncode == status, run.stderr
    assert "handlers ran" in run.stdout  # to a pipe, so it was flushed
    assert ("regraft 0." in run.stdout) if status == 0 else ("nowhere" in run.stderr)
    assert "taken apart" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", THREAD, PROFILE])
def test_without_torch_or_with_a_running_thread_it_ends_as_usual(before):
    run = ended(before, ["--version"])
    assert run.returncode == 0, run.stderr
    assert "handlers ran" in run.stdout
    assert ("thread ended" in run.stdout) == (before == THREAD)
    assert "taken apart" in run.stderr


def test_one_of_several_processes_runs_no_handlers():
    run = ended(TORCH, ["--version"], WORLD_SIZE="2")
    assert run.returncode == 0, run.stderr
    assert "handlers ran" not in run.stdout
    assert "regraft 0." in run.stdout


def test_a_reader_that_has_gone_is_no_complaint():
    handler = 'atexit.register(print, "for nobody")'
    code = CODE.format(before=TORCH, arguments=NOWHERE, handler=handler)
    reader, writer = os.pipe()
    os.close(reader)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # printed last
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, env=env, check=False
    )
    os.close(writer)
    assert run.returncode == 3, run.stderr
    assert "nowhere" in run.stderr
    assert "BrokenPipe" not in run.stderr
