"""A preloaded process is any process to the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import preloaded

pytestmark = [
    pytest.mark.skipif(not preloaded.HERE, reason="it starts as usual here"),
    pytest.mark.usefixtures("fast_processes"),
]
LOADED = "'torch' in sys.modules and not any(m.startswith('regraft') for m in sys.modules)"


def python(*words: str, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, **how)  # type: ignore[call-overload, no-any-return]


def test_it_has_the_arguments_streams_folder_and_environment(tmp_path: Path) -> None:
    code = (
        f"import os, sys; print({LOADED}, sys.argv, os.getcwd(), os.environ.get('A'), os.environ.get('HOME'), input())"
    )
    done = python("-c", code, "x y", cwd=tmp_path, env={"A": "é"}, input="said")
    assert done.stdout == f"True ['-c', 'x y'] {tmp_path} é None said\n", done.stderr
    assert done.returncode == 0 and done.stderr == ""


def test_a_file_a_module_and_an_error_end_as_they_do(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import sys, b\nif __name__ == '__main__': sys.exit(b.CODE)")
    (tmp_path / "b.py").write_text("CODE = 7")
    assert python(str(file)).returncode == python("-m", "a", cwd=tmp_path).returncode == 7
    assert "No module named 'b'" in python("-P", str(file)).stderr
    done = python("-c", "raise KeyError('here')")
    assert done.returncode == 1 and done.stderr.endswith("KeyError: 'here'\n")


def test_a_relative_folder_is_below_the_callers(
    preloading: preloaded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloading.ready()  # the server stays in the folder where it started
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path)
    done = python("-c", "import os; print(os.getcwd())", cwd="inside")
    assert done.stdout == f"{tmp_path / 'inside'}\n", done.stderr


def test_it_is_a_child_that_gets_signals_and_given_streams() -> None:
    reader, writer = os.pipe()
    code = f"import os, sys, time; os.write({writer}, b'up %d' % os.getppid()); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[writer], start_new_session=True) as child:
        os.close(writer)
        assert os.read(reader, 100) == b"up %d" % os.getpid()
        assert os.getsid(child.pid) == child.pid
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == -signal.SIGTERM
    assert os.read(reader, 100) == b""  # nobody else has it open
    os.close(reader)


def test_a_shell_reaches_it_by_a_shim(preloading: preloaded.Server, tmp_path: Path) -> None:
    path = f"{preloading.shim(tmp_path / 'bin')}:{os.environ['PATH']}"
    line = "regraft --version && regraft fit nowhere --source none --out x"
    done = subprocess.run(["bash", "-c", line], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.stdout.startswith("regraft 0.") and done.returncode == 3
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["-W", "error", "-c", LOADED], ["-I", "-c", LOADED]])
def test_options_that_need_a_fresh_start_get_one(words: list[str]) -> None:
    done = python(*words[:-1], f"import sys; print({words[-1]})")
    assert done.stdout == "False\n", done.stderr
