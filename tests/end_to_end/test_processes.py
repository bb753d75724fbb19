"""``regraft fit --nproc 2``: the run of two processes is the run of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
import torch
from safetensors.torch import load_file

from listeners import on_loopback_alone

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_processes")]


COMMAND = [
    sys.executable,
    "-m",
    "regraft",
    "fit",
    "--source",
    "timm:test_resnet",
    "--set",
    "source.image_size=32",
    "--set",
    "run.threads=1",
    "--batch-size",
    "7",
    # from the probe nothing would move: it separates these colours
    "--set",
    "fit.start=random",
    "--head-lr",
    "0.03",
    "--set",
    "fit.lr=5e-4",
]


def fit(pictures, weights, out, *more, code=0, env=()):
    command = [*COMMAND, str(pictures), "--weights", str(weights), "--out", str(out), "--epochs", "2", *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **dict(env)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.fresh_process
def test_two_processes_make_the_run_of_one(pictures, weights, tmp_path):
    fit(pictures, weights, tmp_path / "one")
    done = fit(pictures, weights, tmp_path / "two", "--nproc", "2")
    assert done.stdout.count("TARGET") == 1  # one of them speaks
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5)
    for a, b in zip(lines(tmp_path / "one/history.jsonl"), lines(tmp_path / "two/history.jsonl"), strict=True):
        assert b["terms"] == pytest.approx(a["terms"], abs=1e-4)
        assert b["val"] == pytest.approx(a["val"], abs=1e-4)
    first, second = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert first["test"]["accuracy"] == second["test"]["accuracy"]
    assert (tmp_path / "one/manifest.jsonl").read_bytes() == (tmp_path / "two/manifest.jsonl").read_bytes()
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2


def test_seeds_and_scratch_by_processes_are_those_of_one(pictures, weights, tmp_path):
    more = ["--seeds", "3", "--controls", "scratch", "--set", "evaluate.scratch_budget=1", "--set", "fit.average=0.5"]
    fit(pictures, weights, tmp_path / "one", *more)
    fit(pictures, weights, tmp_path / "two", "--nproc", "2", "--set", "run.spread=arms", *more)
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    for key in ("test", "gain", "verdict", "mean", "seeds", "scratch"):  # whole fits: to the bit
        assert one[key] == two[key], key
    histories = [lines(tmp_path / n / "history.jsonl") for n in ("one", "two")]
    assert histories[0] == histories[1]
    assert one["test_opened"] == 1 and two["test_opened"] == 2  # not once a process


def test_ranks_look_at_one_verdict_and_open_test_once(pictures, weights, tmp_path):
    more = ["--seeds", "auto", "--controls", "scratch", "--set", "evaluate.scratch_budget=1", "--epochs", "1"]
    fit(pictures, weights, tmp_path / "two", "--nproc", "2", *more)
    found = json.loads((tmp_path / "two" / "result.json").read_text())
    assert found["test_opened"] == 1 and len(found["seeds"]) == found["looks"]["taken"] + 2


def test_an_error_is_said_once_with_its_exit_code(pictures, weights, tmp_path):
    done = fit(
        pictures, weights, tmp_path / "no", "--nproc", "2", "--set", "fit.patience=1", "--set", "data.folds=3", code=2
    )
    assert done.stderr.count("PlanError") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.fault(16)
def test_two_processes_that_are_killed_go_on_as_two_or_as_one(pictures, weights, tmp_path):
    more = ["--set", "run.checkpoint_every=2", "--set", "run.precision=float32"]
    fit(pictures, weights, tmp_path / "whole", "--nproc", "2", *more)
    whole = load_file(tmp_path / "whole/model/model.safetensors")
    kill = {"REGRAFT_FAILPOINT": "kill written step-00000010"}  # of the first process, as it saves
    for count, tolerance in ((2, 1e-6), (1, 2e-5)):
        out = tmp_path / f"killed-{count}"
        fit(pictures, weights, out, "--nproc", "2", *more, code=128 + signal.SIGKILL, env=kill)
        left = sorted(p.name for p in (out / "checkpoints").glob("step-*"))
        assert left and left[-1] < "step-00000010"
        command = [sys.executable, "-m", "regraft", "fit", "--resume", str(out), "--nproc", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "goes on from step" in (out / "log.txt").read_text()
        assert lines(out / "history.jsonl")[-1]["best"]  # so what is compared was trained
        for name, value in load_file(out / "model/model.safetensors").items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=tolerance)
        for a, b in zip(lines(tmp_path / "whole/history.jsonl"), lines(out / "history.jsonl"), strict=True):
            assert b["terms"] == pytest.approx(a["terms"], abs=1e-4)


def test_sharded_weights_make_the_run_of_whole_ones_after_a_kill(pictures, weights, tmp_path):
    """Of the scratch control too, whose batch norms train: so of two processes both times."""
    more = [
        "--nproc",
        "2",
        "--set",
        "run.checkpoint_every=2",
        "--set",
        "run.precision=float32",
        "--set",
        "run.layout=contiguous",
        "--controls",
        "scratch",
        "--set",
        "evaluate.scratch_budget=1",
        "--set",
        "evaluate.scratch_rates=[1.0]",
    ]
    whole, out = tmp_path / "whole", tmp_path / "divided"
    fit(pictures, weights, whole, *more)
    kill = {"REGRAFT_FAILPOINT": "kill written step-00000010"}  # of the first process, as it saves
    shard = ["--set", "run.shard=true"]
    fit(pictures, weights, out, *more, *shard, code=128 + signal.SIGKILL, env=kill)
    undivided = tmp_path / "undivided"
    shutil.copytree(out, undivided, ignore=shutil.ignore_patterns("lock"))
    others = load_file(whole / "model/model.safetensors")
    for folder, settings in ((out, []), (undivided, ["--set", "run.shard=false"])):
        command = [*COMMAND[:4], "--resume", str(folder), "--nproc", "2", *settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "goes on from step" in (folder / "log.txt").read_text()
        for name, value in load_file(folder / "model/model.safetensors").items():
            torch.testing.assert_close(value, others[name], rtol=0, atol=2e-5)
    histories = [lines(folder / "history.jsonl") for folder in (whole, out)]
    assert histories[1][-1]["best"]  # so what is compared was trained
    for a, b in zip(*histories, strict=True):
        assert b["terms"] == pytest.approx(a["terms"], abs=1e-4)
        assert b["val"] == pytest.approx(a["val"], abs=1e-4)
    one, two = (json.loads((f / "result.json").read_text()) for f in (whole, out))
    assert one["test"]["accuracy"] == two["test"]["accuracy"] and one["gain"] == two["gain"]


def test_one_process_has_nobody_to_divide_weights_with(pictures, weights, tmp_path):
    done = fit(pictures, weights, tmp_path / "no", "--set", "run.shard=true", code=2)
    assert "run.shard" in done.stderr and "--nproc" in done.stderr
    assert not (tmp_path / "no").exists()


def test_what_one_process_came_to_know_alone_is_not_waited_for(pictures, weights, tmp_path):
    """Resumed after the probe, only the process that has the seed asks for features, until all do."""
    out = tmp_path / "run"
    arms = ["--set", "run.spread=arms", "--freezing", "head_only", "--set", "fit.start=probe"]
    kill = {"REGRAFT_FAILPOINT": "kill renamed done-probe"}
    fit(pictures, weights, out, *arms, code=-signal.SIGKILL, env=kill)
    command = [*COMMAND[:4], "--resume", str(out), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@contextmanager
def training(command, out):
    """A command that has saved a checkpoint."""
    before = set(out.glob("checkpoints/step-*"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launched:
        until = time.monotonic() + 120
        try:
            while not set(out.glob("checkpoints/step-*")) - before:
                assert launched.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            yield launched
        finally:
            launched.terminate()


@pytest.mark.fault(11)
@pytest.mark.fault(24)
def test_a_signal_to_launcher_or_rank_ends_all_and_is_named(pictures, weights, tmp_path):
    out = tmp_path / "stopped"
    command = [
        *COMMAND,
        str(pictures),
        "--weights",
        str(weights),
        "--out",
        str(out),
        "--nproc",
        "2",
        "--epochs",
        "200",
        "--workers",
        "1",
    ]
    with training(command, out) as launched:
        assert on_loopback_alone(launched.pid) >= 5  # ranks, and a loader worker of each
        launched.send_signal(signal.SIGTERM)
        launched.communicate(timeout=120)
    assert launched.returncode == 143
    assert json.loads((out / "result.json").read_text())["status"] == "interrupted"
    assert list(out.glob("checkpoints/step-*")) and not (out / "lock").exists()

    for number, words in ((signal.SIGKILL, "SIGKILL; perhaps out of memory"), (signal.SIGSTOP, "SIGSTOP")):
        command = [*COMMAND[:4], "--resume", str(out), "--nproc", "2"]
        with training(command, out) as launched:
            _, rank = sorted(psutil.Process(launched.pid).children(), key=lambda p: p.pid)
            rank.send_signal(number)
            _, said = launched.communicate(timeout=60)
        assert launched.returncode == 128 + number
        how = "killed" if number == signal.SIGKILL else "stopped"
        sentence = f"rank 1 of 2 was {how} (signal {int(number)}, {words})"
        sentence += f": go on with `regraft fit --resume {out}`"
        error = json.loads((out / "result.json").read_text())["error"]
        assert error == sentence and said.count(sentence) == 1
        for text in (said, (out / "log.txt").read_text()):
            assert "gloo" not in text
        assert "Traceback" not in said


def test_resume_is_exact_with_two_processes_too(pictures, weights):
    command = [
        *COMMAND[:3],
        "verify-resume",
        *COMMAND[4:],
        str(pictures),
        "--weights",
        str(weights),
        "--epochs",
        "2",
        "--nproc",
        "2",
        "--steps",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "resume is exact here" in done.stdout, done.stdout + done.stderr
