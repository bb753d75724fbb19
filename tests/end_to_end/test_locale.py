"""A terminal that knows ASCII alone, and files with the line ends of Windows, change nothing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regraft.data.loading import read_rows
from regraft.data.splitting import read_manifest, write_manifest
from regraft.data.types import DataOptions, Splits
from regraft.formats import table
from regraft.plan.read import read_plan

UNICODE = {"LC_ALL": "C", "LANG": "C"}
ASCII = UNICODE | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # Python, believe what it says
STRICT = """
import warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"regraft")
"""
COMMANDS = """
import json, sys
from regraft.cli.app import main
for sys.argv in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""


def regraft(folder: Path, environment: dict[str, str], *args: object) -> tuple[int, str, str]:
    """A command in a process of its own, in which no file of ours is opened in the locale's encoding."""
    return process(folder, environment, "-m", "regraft", *map(str, args))


def process(folder: Path, environment: dict[str, str], *words: str) -> tuple[int, str, str]:
    """Such a process of Python."""
    (folder / "strict").mkdir(exist_ok=True)
    (folder / "strict/sitecustomize.py").write_text(STRICT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    env = kept | {"PYTHONPATH": str(folder / "strict"), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-X", "warn_default_encoding", *words]
    done = subprocess.run(command, env=env, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def texts(tmp_path):
    """A table whose labels and texts are no ASCII."""
    path = tmp_path / "t.csv"
    lines = [f"the {w} film {i},{c}" for i in range(40) for w, c in (("good", "grün"), ("bad", "チ"))]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.fault(89)
@pytest.mark.parametrize(
    "environment", [pytest.param(UNICODE, marks=pytest.mark.slow), ASCII], ids=["C", "C taken at its word"]
)
def test_a_terminal_of_ascii_stops_nothing(texts, tmp_path, environment):
    code, out, err = regraft(tmp_path, environment, "check", texts)
    assert code == 0 and "rows" in out, err
    code, out, err = regraft(tmp_path, environment, "plan", texts, "--source", "timm:né")
    # taken at its word, the argument is no text, and a plan that names it is refused
    assert code == (2 if environment is ASCII else 4), err
    assert err.strip() and "unexpected" not in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.fault(89)
def test_a_run_is_the_same_in_any_locale(texts, bert, tmp_path):
    runs = []
    for name, environment in (("utf8", {"LC_ALL": "C.UTF-8"}), ("ascii", ASCII)):
        run = tmp_path / name
        args = ["--source", f"transformers:{bert}", "--epochs", 1, "--set", "run.threads=1"]
        lines = [["fit", texts, *args, "--out", run], ["predict", run, texts], ["report", run], ["list", tmp_path]]
        every = json.dumps([["regraft", *map(str, line)] for line in lines])
        code, out, err = process(tmp_path, environment, "-c", COMMANDS, every)
        assert code == 0 and "λ" in err and "TARGET" in out, err
        header, *rows = csv.reader(out.splitlines()[out.splitlines().index("input,predicted,grün,チ") :][:81])
        assert len(rows) == 80 and all(len(row) == len(header) == 4 for row in rows)
        runs.append(run)
    for file in ("manifest.jsonl", "predictions.csv", "model/model.safetensors", "model/labels.json"):
        one, two = ((run / file).read_bytes() for run in runs)
        assert one == two, file


@pytest.mark.slow
@pytest.mark.fault(62)
@pytest.mark.usefixtures("fast_processes")
def test_lines_of_input_that_are_no_text_are_named(texts, bert, tmp_path):
    run = tmp_path / "run"
    args = ["--source", f"transformers:{bert}", "--epochs", 1, "--set", "run.threads=1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-m", "regraft"]
    subprocess.run([*started, "fit", texts, *map(str, args), "--out", run], env=env, capture_output=True, check=True)
    command = [*started, "predict", run, "-"]
    done = subprocess.run(command, input=b"the film\n\xff\xfe\n", env=env, capture_output=True)
    assert done.returncode == 3 and b"1 lines of input are not UTF-8 text: line 2" in done.stderr
    (tmp_path / "t.txt").write_bytes(b"the film\n\xff\n")
    done = subprocess.run([*command[:-1], tmp_path / "t.txt"], env=env, capture_output=True)
    assert done.returncode == 3 and b"t.txt is not UTF-8 text: byte 9 is 0xff" in done.stderr


@pytest.mark.fault(89)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_line_ends_of_windows_give_the_same_rows(tmp_path, suffix):
    if suffix == ".csv":
        text = 'text,label,split\none,a,train\n"two, with a comma",b,train\n\nthree,a,test\n'
    else:
        rows = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
        text = "\n".join(map(json.dumps, rows)) + "\n"
    found = []
    for name, content in (("unix", text), ("dos", text.replace("\n", "\r\n")), ("bom", "\ufeff" + text)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"t{suffix}"
        path.write_bytes(content.encode())
        found.append(table.read(path, DataOptions(path)))
        ids = [e.id for e in read_rows(DataOptions(path)).examples]
    assert found[0] == found[1] == found[2] and len(ids) == len(found[0].rows)


@pytest.mark.fault(89)
def test_windows_line_ends_in_plan_and_manifest_read_the_same(texts, tmp_path):
    text = '[source]\nref = "timm:a"\n[data]\npath = "ü"\n[fit]\nepochs = 3\n'
    (tmp_path / "unix.toml").write_bytes(text.encode())
    (tmp_path / "dos.toml").write_bytes(text.replace("\n", "\r\n").encode())
    assert read_plan(tmp_path / "unix.toml", {}) == read_plan(tmp_path / "dos.toml", {})
    splits = Splits("text", tuple(read_rows(DataOptions(texts)).examples), (), (), "", "")
    write_manifest(splits, tmp_path / "unix.jsonl")
    written = (tmp_path / "unix.jsonl").read_bytes()
    assert b"\r" not in written
    (tmp_path / "dos.jsonl").write_bytes(written.replace(b"\n", b"\r\n"))
    unix, dos = (list(read_manifest(tmp_path / f"{n}.jsonl")) for n in ("unix", "dos"))
    assert unix == dos and {r.cells[0] for r in unix} == {"grün", "チ"}
