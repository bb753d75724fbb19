"""Odd surroundings: a stream that is closed or full, names that no system takes, a library that asks."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regraft.cli import app as cli
from regraft.cli.app import main
from regraft.commands.predict import write_predictions
from regraft.errors import DiskError, UsageError, from_os_error
from regraft.evidence.types import Prediction
from regraft.io import streams
from regraft.io.command_lines import command, python
from regraft.runs.folder import RunFolder

LONG = "a" * 300
DEEP = "/".join(["a" * 200] * 30)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which R is regraft."""
    env = os.environ | {"R": f"{sys.executable} -m regraft"}
    return subprocess.run(["/bin/sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("$R --version >&-", 2, "UsageError: standard output is closed"),
        ("$R list sources >&- 2>&-", 2, ""),
        ("$R list sources > /dev/full", 6, "DiskError: standard output"),
        ("$R list all > /dev/full", 6, "DiskError: standard output"),
        ("$R list nothing 2> /dev/full", 2, ""),
        ("$R list sources <&-", 0, ""),
    ],
)
def test_odd_surroundings_are_one_sentence(tmp_path, line, code, words):
    done = shell(line, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("list", LONG),
        ("report", DEEP),
        ("predict", LONG, "x"),
        ("init", "bundled:x", "data", "--out", LONG),
        ("init", "bundled:x", "data", "--out", "missing/folder/plan.toml"),
        ("ui", LONG),
        ("doctor", LONG),
        ("fit", "data", "--source", "timm:x", "--out", DEEP),
        ("check", LONG),
        ("compare", DEEP, LONG),
    ],
)
def test_a_name_that_no_system_takes_is_one_sentence(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["regraft", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1), said
    assert said.startswith("UsageError: ")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_stream_is_reopened_before_a_file_takes_it(tmp_path):
    code = (
        "from regraft.io import streams; streams.open_closed(); import os; "
        "assert all(os.get_inheritable(n) for n in range(3)); "
        "f = open('data', 'w'); os.write(1, b'noise'); os.write(2, b'noise'); assert f.fileno() > 2"
    )
    done = shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "data").read_text() == ""


def test_input_is_for_regraft_alone_and_libraries_get_none(tmp_path):
    code = """
import subprocess, sys
from regraft.cli import app as cli
from regraft.io import streams
with streams.own_input() as own:
    try:
        print(input("run the custom code? [y/N] "))
    except EOFError:
        print("empty")
    print(repr(sys.stdin.read()), subprocess.run(["cat"], capture_output=True).stdout)
    print(repr(own.read()))
print(repr(sys.stdin.read()))
"""
    done = subprocess.run([sys.executable, "-c", code], input="yes\nno\n", capture_output=True, text=True, timeout=60)
    lines = done.stdout.removeprefix("run the custom code? [y/N] ").splitlines()
    assert lines == ["empty", "'' b''", "'yes\\nno\\n'", "''"], done.stderr


def test_text_in_memory_is_input_too(monkeypatch):
    given = io.StringIO("a\n")
    monkeypatch.setattr(sys, "stdin", given)
    with streams.own_input() as own:
        assert sys.stdin.read() == ""
        assert own.read() == "a\n"
    assert sys.stdin is given
    monkeypatch.setattr(sys, "stdin", None)
    with streams.own_input() as own:
        assert own.read() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("é α → “x”\n\ty", "é α → “x”\n\ty"),
        ("\x1b[2J\x07", "\\u001b[2J\\u0007"),
        ("a\rb\x7f", "a\\rb\\u007f"),
        ("\u202e\x9b", "\\u202e\\u009b"),
        ("\udcff", "\\udcff"),
        ("\U000e0001", "\\udb40\\udc01"),
    ],
)
def test_no_string_commands_a_terminal(text, expected, capsys):
    streams.echo(text)
    streams.complain(text)
    assert capsys.readouterr() == (expected + "\n", expected + "\n")


@pytest.mark.parametrize("name", ["a b", "$(touch x)", "; touch x", "`touch x`", "it's", "a\nb", "-x"])
def test_a_command_to_paste_names_the_folder(tmp_path, name):
    line = command("fit", "--resume", Path("runs") / name).replace("regraft", "printf '%s|'", 1)
    done = shell(line, tmp_path)
    assert done.stdout == f"fit|--resume|runs/{name}|"
    assert list(tmp_path.iterdir()) == []


def test_every_command_prints_through_streams():
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    found = {ast.unparse(n.func) for n in calls}
    found |= {ast.unparse(k.value) for n in calls for k in n.keywords}
    assert not {"print", "typer.echo", "sys.stdout.write"} & found
    assert "streams.echo" in found


def test_errors_of_the_system_have_the_code_of_their_kind():
    for number, kind in ((36, UsageError), (2, UsageError), (28, DiskError), (13, DiskError), (11, None)):
        found = from_os_error(OSError(number, "why", "name\n\x1b"))
        assert found is None if kind is None else isinstance(found, kind)
        assert found is None or "name\\n\\x1b" in str(found)


def test_a_started_process_looks_where_this_one_does(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("print('a file of the working folder')")
    monkeypatch.chdir(tmp_path)
    for here, expected in ((False, ""), (True, "a file of the working folder\n")):
        monkeypatch.setattr(sys, "path", [*sys.path, *([str(tmp_path)] if here else [])])
        line = [
            *python(),
            "-c",
            "import importlib.util as u; s = u.find_spec('torch'); "
            f"s and s.origin == {str(tmp_path / 'torch.py')!r} and __import__('torch')",
        ]
        assert subprocess.run(line, capture_output=True, text=True, timeout=60).stdout == expected


def test_a_run_warns_without_commands_to_a_terminal(capsys, tmp_path):
    RunFolder(tmp_path / "run").warn("a\x1b[2J")
    assert capsys.readouterr().err == "a\\u001b[2J\n"


@pytest.mark.parametrize(("terminal", "expected"), [(True, "a\\u001b[2J\n"), (False, "a\x1b[2J\n")])
def test_rows_of_data_are_escaped_for_a_terminal_alone(monkeypatch, terminal, expected):
    class Output(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr("sys.stdout", Output())
    write_predictions(streams.output(), ["a\x1b[2J"], [Prediction("b\x1b[2J", 1.0, {})], as_json=False)
    assert expected.strip() in sys.stdout.getvalue()
    assert ("\x1b" in sys.stdout.getvalue()) is not terminal
