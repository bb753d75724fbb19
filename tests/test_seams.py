"""One new file adds a task, a metric, a strategy, an export, a tracker, a check or a section.

Each file of ``new_files/`` is copied into a copy of the package; no other line is changed there.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regraft

HERE = Path(__file__).parent
NEW = HERE / "new_files"
FILES = sorted(NEW.rglob("*.py"))
NAMES = sorted(f.stem for f in FILES)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder with a copy of the package and of its docs' builder; the new files are in the copy."""
    root = tmp_path_factory.mktemp("copy")
    bare = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(regraft.__file__).parent, root / "regraft", ignore=bare)
    before = {p for p in (root / "regraft").rglob("*") if p.is_file()}
    assert not [f for f in FILES if (root / "regraft" / f.relative_to(NEW)) in before]
    shutil.copytree(NEW, root / "regraft", dirs_exist_ok=True, ignore=bare)
    return root


@pytest.fixture(scope="module")
def python(copy, preloading):
    """Run Python with the copy in the place of the package; return what it printed."""
    env = os.environ | {
        "PYTHONPATH": str(copy),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_OFFLINE": "1",
        "REGRAFT_STATE": str(copy / "state"),
        "REGRAFT_CACHE": str(copy / "cache"),
    }

    def run(*args, code=0):
        words = [sys.executable, *map(str, args)]
        with preloading.redirected():
            done = subprocess.run(words, cwd=copy, env=env, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def command(python):
    return lambda *args, code=0: python("-m", "regraft", *args, code=code)


@pytest.fixture(scope="module")
def data(copy):
    """80 pictures of noise; the count is how bright they are."""
    rng = np.random.default_rng(0)
    (copy / "img").mkdir()
    lines = ["image,n"]
    for i in range(80):
        n = int(rng.integers(0, 9))
        pixels = rng.integers(0, 60 + 20 * n, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(copy / "img" / f"{i}.png")
        lines.append(f"{i}.png,{n}")
    (copy / "labels.csv").write_text("\n".join(lines))
    return copy / "labels.csv"


COLUMNS = ("--image-root", "img", "--image", "image", "--label", "n")
NEW_TASK = ("--task", "count", "--freezing", "every_other", "--set", 'task.metrics=["bias"]')


@pytest.fixture(scope="module")
def fitted(copy, data, command, tiny_weights):
    """What a fit printed, and its run."""
    settings = ("--epochs", "2", "--set", "run.workers=0", "--out", "run")
    said = command("fit", data, *COLUMNS, *tiny_weights, *NEW_TASK, *settings)
    return said, copy / "run"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_new_file_is_listed_and_documented(file, command, python, copy):
    folder = ".".join(file.relative_to(NEW).parts[:-1])
    assert file.stem in command("list", folder)
    docs = copy / "docs"
    if not docs.exists():
        docs.mkdir()
        shutil.copy(HERE.parent / "docs/build_reference.py", docs)
        python(docs / "build_reference.py")
    about = file.read_text().splitlines()[0].strip('".')
    assert f"| `{file.stem}` | {about}" in (docs / "reference.md").read_text()


@pytest.mark.parametrize(
    ("name", "verb"), [("count", "fit"), ("every_other", "fit"), ("program", "export"), ("lines", "track")]
)
def test_help_names_a_new_file(name, verb, command):
    assert name in command(verb, "--help")


@pytest.mark.slow
def test_a_new_task_and_metric_are_fitted(fitted):
    said, run = fitted
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished" and result["task"] == "count"
    for name in ("mae", "rmse", "bias"):
        estimate = result["test"][name]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert f"{name} {estimate['value']:.3f}" in said  # the summary
    assert set(result["controls"]) == {"mean", "linear probe"}
    assert result["calibration"] is None and result["confusion"] is None


@pytest.mark.slow
def test_a_new_metric_may_be_the_one_that_chooses(data, command, tiny_weights):
    chosen = command("plan", data, *COLUMNS, *tiny_weights, *NEW_TASK, "--set", "task.primary=bias")
    assert "count" in chosen
    for settings, words in (
        (("task.primary=bias",), 'metrics = ["bias"]'),
        (('task.metrics=["bais"]',), 'did you mean "bias"?'),
        (('task.metrics=["accuracy"]',), '"accuracy" takes class'),
    ):
        given = [part for s in settings for part in ("--set", s)]
        assert words in command("plan", data, *COLUMNS, *tiny_weights, "--task", "count", *given, code=2)


@pytest.mark.slow
def test_a_new_strategy_decides_which_blocks_train(fitted):
    result = json.loads((fitted[1] / "result.json").read_text())
    trains = [block["first_epoch"] is not None for block in result["blocks"]][::-1]
    assert trains == [i % 2 == 0 for i in range(len(trains))]


@pytest.mark.slow
def test_a_new_check_is_among_the_findings(fitted, data, command):
    assert "rows of test beyond those of val" in command("check", data, *COLUMNS, "--task", "count")
    assert "rows of test beyond those of val" in (fitted[1] / "check.json").read_text()


@pytest.mark.slow
def test_a_new_section_is_in_the_report(fitted, command):
    command("report", fitted[1])
    page = (fitted[1] / "report.html").read_text()
    assert "Rows in all: 80." in page and "bias" in page


@pytest.mark.slow
def test_a_new_task_predicts_and_evaluates(fitted, data, command):
    rows = list(csv.DictReader(command("predict", fitted[1], "img").splitlines()))
    assert len(rows) == 80 and all(float(row["n"]) > 0 for row in rows)
    assert "bias" in command("evaluate", fitted[1], data, *COLUMNS)
    assert "mae" in command("list", fitted[1].parent)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["program", "onnx", "bundle"])
def test_a_new_task_leaves_by_every_export_and_a_new_one(to, fitted, command):
    said = command("export", fitted[1], "--to", to)
    assert "SAME" in said and "numbers" not in said
    card = (fitted[1] / "exports" / to / "README.md").read_text()
    assert "count" in card


@pytest.mark.slow
def test_a_new_tracker_is_sent_the_run(fitted, command):
    said = command("track", fitted[1], "--to", "lines")
    lines = [json.loads(line) for line in (fitted[1] / "lines/run.jsonl").read_text().splitlines()]
    assert "val/mae" in lines[0] and lines[-1]["state"] == "finished" and "test/bias" in lines[-1]
    assert str(fitted[1] / "lines") in said


@pytest.mark.slow
def test_a_run_of_a_new_task_is_a_source_and_compared(fitted, data, command, copy):
    args = ("--epochs", "1", "--task", "count", "--set", "run.workers=0", "--out", "second")
    said = command("fit", data, *COLUMNS, "--source", fitted[1], *args)
    assert "SOURCE" in said
    assert "mae" in command("compare", fitted[1], copy / "second")


@pytest.mark.slow
def test_new_files_keep_their_contracts(copy, python):
    contracts = copy / "contracts"
    if not contracts.exists():
        shutil.copytree(HERE / "contracts", contracts)
        for file in HERE.glob("*.py"):
            shutil.copy(file, copy)
        shutil.copy(HERE.parent / "pyproject.toml", copy)
    wanted = " or ".join(NAMES)
    loaded_before = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
    options = ("-q", "-p", "no:cacheprovider", *loaded_before)
    said = python("-m", "pytest", *options, contracts, copy / "test_plugins.py", "-k", wanted)
    assert " passed" in said
