"""``regraft fit --nproc 2``: the run of two processes is the run of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # each run imports torch in three processes


def fit(pictures, weights, out, *more, code=0):
    command = [
        sys.executable, "-m", "regraft", "fit", str(pictures), "--source", "timm:test_resnet",
        "--weights", str(weights), "--out", str(out), "--set", "source.image_size=32",
        "--set", "run.threads=1", "--epochs", "2", "--batch-size", "7", *more,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_make_the_run_of_one(pictures, weights, tmp_path):
    fit(pictures, weights, tmp_path / "one")
    done = fit(pictures, weights, tmp_path / "two", "--nproc", "2")
    assert done.stdout.count("TARGET") == 1  # one of them speaks
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5)
    for a, b in zip(
        lines(tmp_path / "one/history.jsonl"), lines(tmp_path / "two/history.jsonl"), strict=True
    ):
        assert b["terms"] == pytest.approx(a["terms"], abs=1e-4)
        assert b["val"] == pytest.approx(a["val"], abs=1e-4)
    first, second = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert first["test"]["accuracy"] == second["test"]["accuracy"]
    assert (tmp_path / "one/manifest.jsonl").read_bytes() == (
        tmp_path / "two/manifest.jsonl"
    ).read_bytes()
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2


def test_seeds_and_scratch_by_processes_are_those_of_one(pictures, weights, tmp_path):
    more = ["--seeds", "3", "--controls", "scratch", "--set", "evaluate.scratch_budget=1"]
    fit(pictures, weights, tmp_path / "one", *more)
    fit(pictures, weights, tmp_path / "two", "--nproc", "2", "--set", "run.spread=arms", *more)
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    for key in ("test", "gain", "verdict", "mean", "seeds", "scratch"):  # whole fits: to the bit
        assert one[key] == two[key], key
    histories = [lines(tmp_path / n / "history.jsonl") for n in ("one", "two")]
    assert histories[0] == histories[1]
    assert one["test_opened"] == 1 and two["test_opened"] == 2  # not once a process


def test_an_error_is_said_once_with_its_exit_code(pictures, weights, tmp_path):
    done = fit(pictures, weights, tmp_path / "no", "--nproc", "2", "--set", "fit.patience=1",
               "--set", "data.folds=3", code=2)  # fmt: skip
    assert done.stderr.count("PlanError") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "no").exists()
