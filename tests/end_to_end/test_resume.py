"""Runs that are stopped and resumed end bit for bit where those that were left alone do."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import regraft
from builders import read_result, tiny_source
from regraft.io import locks
from regraft.pipeline import feature_cache as reuse
from regraft.training.checkpoints import CheckpointManager
from regraft.training.objective import Objective

QUICK = ("--epochs", 3, "--batch-size", 16, "--set", "run.threads=1", "--set", "run.checkpoint_every=2")
VIEWS = ("--set", "fit.views=3")
MOVING = ("--set", "fit.start=random", "--head-lr", 0.03, "--set", "fit.lr=5e-4")


def files(run: Path) -> dict[str, bytes]:
    """All that must be the same, whatever came between."""
    names = ("model/model.safetensors", "history.jsonl", "predictions.csv", "manifest.jsonl")
    found = {name: (run / name).read_bytes() for name in names}
    return found | {p.name: p.read_bytes() for p in run.glob("frontier/*")}


@pytest.fixture
def stop(cli, monkeypatch):
    """Run the command line up to a failpoint: → (exit code, stdout, stderr)."""

    def call(where: str, *args: object) -> tuple[int, str, str]:
        monkeypatch.setenv("REGRAFT_FAILPOINT", f"stop {where}")
        try:
            return cli(*args)
        finally:
            monkeypatch.delenv("REGRAFT_FAILPOINT")

    return call


@pytest.fixture
def resumed(cli, stop, tmp_path):
    """A fit that is stopped at each of these points and resumed → its folder, beside one that is not."""

    def call(points: list[str], *args: object, resume: tuple[object, ...] = ()) -> tuple[Path, Path]:
        out, alone = tmp_path / "stopped", tmp_path / "alone"
        command: tuple[object, ...] = ("fit", *args, "--out", out)
        for point in points:
            code, _, err = stop(point, *command)
            assert code == 143 and "which is saved; go on with: regraft fit --resume" in err, err
            assert read_result(out)["status"] == "interrupted"
            command = ("fit", "--resume", out, *resume)
        code, _, err = cli(*command)
        assert code == 0, err
        code, _, err = cli("fit", *args, "--out", alone)
        assert code == 0, err
        return out, alone

    return call


def is_the_same(out: Path, alone: Path) -> None:
    one, other = files(out), files(alone)
    assert one.keys() == other.keys()
    for name, content in one.items():
        assert content == other[name], name
    a, b = read_result(out), read_result(alone)
    for r in (a, b):  # the second run opens the same source rows once more
        (r["retention"] or {}).pop("opened", None)
    for key in ("test", "val", "seeds", "frontier", "retention", "cross_validation", "scratch"):
        assert a[key] == b[key], key
    assert len(a["resumed"]) >= 1 and b["resumed"] == []
    assert not (out / "checkpoints").exists() and not (out / "lock").exists()


# ---------------------------------------------------------------- bit for bit


@pytest.mark.fault(11)
@pytest.mark.fault(13)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_mid_epoch_and_again(resumed, pictures, weights, workers):
    how = ("--set", "fit.average=0.9", "--set", "fit.accumulate=2", "--set", "fit.sharpness=0.05", "--workers", workers)
    out, alone = resumed(["step 1", "step 3", "step 5"], pictures, *tiny_source(weights), *QUICK, *MOVING, *how)
    is_the_same(out, alone)
    assert len(read_result(out)["resumed"]) == 3


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    ("freezing", "given"),
    [("gradual", VIEWS), ("gradual", ()), ("last_blocks", VIEWS), ("head_only", VIEWS)],
    ids=["gradual-views", "gradual-augmented anew", "last_blocks-views", "head_only-views"],
)
def test_frozen_blocks_and_cached_features(resumed, pictures, weights, freezing, given, monkeypatch):
    monkeypatch.setattr(reuse, "no_gain", lambda *given: "")
    how = ("--freezing", freezing, *given)
    out, alone = resumed(["step 2", "step 4"], pictures, *tiny_source(weights), *QUICK, *MOVING, *how)
    is_the_same(out, alone)


@pytest.mark.fault(13)
def test_what_was_computed_live_stays_live(resumed, pictures, weights, monkeypatch):
    """Whether the feature cache is worth it depends on the clock: what was decided holds."""
    calls: list[int] = []

    def at_first(*given: Any) -> str:
        calls.append(1)
        return "since the first asked" if len(calls) <= 4 else ""

    monkeypatch.setattr(reuse, "no_gain", at_first)
    how = ("--freezing", "last_blocks", "--set", "fit.views=3")
    out, _ = resumed(["step 2"], pictures, *tiny_source(weights), *QUICK, *MOVING, *how)
    log = (out / "log.txt").read_text()
    assert log.count("since the first asked") == 4
    after = log[log.index("is resumed") :]
    assert "below" not in after  # nothing was decided anew


@pytest.mark.slow
@pytest.mark.fault(13)
def test_finished_seeds_and_scratch_rates_are_not_trained_again(resumed, pictures, weights):
    how = (
        "--seeds",
        2,
        "--controls",
        "scratch",
        "--set",
        "evaluate.scratch_rates=[1.0, 3.0]",
        "--set",
        "evaluate.scratch_budget=1",
    )
    points = [
        "seed 0 step 4",
        "seed 1 step 5",
        "scratch 0.009 step 3",  # beyond the two, the best of which is the outermost
        "scratch 0.027, seed 1 step 2",
    ]
    out, alone = resumed(points, pictures, *tiny_source(weights), *QUICK, *how)
    is_the_same(out, alone)
    lines = read_result(out)["resumed"]
    assert lines[1]["done"] == ["probe", "seed 0"]
    rates = ["scratch 0.001", "scratch 0.003", "scratch 0.009", "scratch 0.027"]
    assert lines[3]["done"] == ["probe", "seed 0", "seed 1", *rates]


@pytest.mark.slow
@pytest.mark.fault(13)
def test_folds(resumed, make_pictures, weights, tmp_path):
    data = make_pictures(tmp_path / "noisy", noise=150)
    how = ("--set", "data.folds=3", "--lr", 5e-4, "--head-lr", 5e-4)
    points = ["fold 0 step 3", "fold 2 step 2", "seed 0 step 2"]
    out, alone = resumed(points, data, *tiny_source(weights), *QUICK, *how)
    is_the_same(out, alone)
    assert "fold 1" in read_result(out)["resumed"][1]["done"]


@pytest.mark.slow
@pytest.mark.fault(13)
def test_penalties_with_a_run_as_the_source(resumed, cli, pictures, make_pictures, weights, tmp_path):
    hard = make_pictures(tmp_path / "hard", noise=200)
    source = tmp_path / "source"
    assert cli("fit", hard, *tiny_source(weights), *QUICK, "--out", source)[0] == 0
    how = (
        "--set",
        "regularizers.replay.strength=1.0",
        "--set",
        "regularizers.lwf.strength=1.0",
        "--set",
        "regularizers.delta.strength=0.01",
        "--set",
        "source_data.each_epoch=true",
    )
    out, alone = resumed(["step 2", "step 5"], pictures, "--source", source, *QUICK, *how)
    is_the_same(out, alone)


@pytest.mark.fault(13)
def test_texts(resumed, bert, tmp_path):
    import random

    draw = random.Random(0)
    rows = [
        (f"the {w} {' '.join(draw.choices(['day', 'film', 'was'], k=1 + i % 5))}", label)
        for i in range(40)
        for w, label in (("good", "yes"), ("bad", "no"))
    ]
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    out, alone = resumed(["step 2", "step 6"], table, "--source", f"transformers:{bert}", *QUICK, *MOVING)
    is_the_same(out, alone)


def test_resume_from_python(pictures, weights, tmp_path, monkeypatch):
    from regraft.training.signals import Interrupted

    settings = {
        "source.weights": str(weights),
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 2,
        "fit.batch_size": 16,
    }
    how = {"source": "timm:test_resnet", "out": tmp_path / "run", "settings": settings}
    monkeypatch.setenv("REGRAFT_FAILPOINT", "stop step 2")
    with pytest.raises(Interrupted, match="stopped at step 2 of seed 0, which is saved"):
        regraft.fit(pictures, **how)
    monkeypatch.delenv("REGRAFT_FAILPOINT")
    run = regraft.fit(pictures, **how, resume=True)
    assert run.result.fit.epochs == 2 and len(run.result.resumed) == 1


# ---------------------------------------------------------------- what changed


@pytest.fixture
def left(stop, pictures, weights, tmp_path) -> tuple[Path, tuple[object, ...]]:
    """A run that was stopped in its second epoch, and what it was begun with."""
    data = shutil.copytree(pictures, tmp_path / "data")
    args = (data, *tiny_source(weights), *QUICK)
    assert stop("step 4", "fit", *args, "--out", tmp_path / "run")[0] == 143
    return tmp_path / "run", args


@pytest.mark.fault(14)
def test_a_changed_plan_is_refused_or_accepted_on_record(left, cli):
    run, args = left
    changed = ("fit", *args, "--epochs", 5, "--lr", 1e-5, "--out", run, "--resume")
    code, _, err = cli(*changed)
    assert code == 2
    assert "fit.epochs: 3 → 5" in err and "fit.lr: 3e-05 → 1e-05" in err and "--accept-changes" in err
    assert "fit.batch_size" not in err
    code, _, err = cli(*changed, "--accept-changes")
    assert code == 0, err
    r = read_result(run)
    assert r["resumed"][0]["changes"] == ["fit.epochs: 3 → 5", "fit.lr: 3e-05 → 1e-05"]
    assert r["fit"]["epochs"] == 5
    assert "epochs = 5" in (run / "plan.toml").read_text()


@pytest.mark.fault(14)
def test_what_changes_no_bit_may_differ(left, cli, tmp_path):
    run, args = left
    more = ("--workers", 2, "--set", "run.checkpoint_every=3 min", "--set", "run.cache=off")
    code, _, err = cli("fit", *args, *more, "--out", run, "--resume")
    assert code == 0, err
    assert read_result(run)["resumed"][0]["changes"] == []


@pytest.mark.fault(15)
def test_changed_data_are_refused_and_named(left, cli):
    run, args = left
    folder = args[0] / "train" / "navy"
    (folder / "000.png").unlink()
    shutil.copy(args[0] / "train" / "olive" / "003.png", folder / "new.png")
    shutil.copy(args[0] / "train" / "olive" / "004.png", folder / "001.png")
    code, _, err = cli("fit", "--resume", run)
    assert code == 3
    assert "1 row edited (train/navy/001.png: content)" in err, err
    assert "1 row added (train/navy/new.png)" in err and "1 row removed (train/navy/000.png)" in err
    assert read_result(run)["status"] == "interrupted"
    code, _, err = cli("fit", "--resume", run, "--accept-changes")
    assert code == 0, err
    assert "data: 1 row edited" in read_result(run)["resumed"][0]["changes"][0]


@pytest.mark.fault(15)
def test_rows_in_another_order_are_the_same_data(stop, cli, bert, tmp_path):
    rows = [(f"the {w} day {'film ' * (i % 4)}was {i}", w) for i in range(30) for w in ("good", "bad")]
    table = tmp_path / "t.csv"

    def write(rows: list[tuple[str, str]]) -> None:
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])

    write(rows)
    args = ("fit", table, "--source", f"transformers:{bert}", *QUICK, *MOVING)
    assert stop("step 2", *args, "--out", tmp_path / "a")[0] == 143
    write(rows[::-1])
    code, _, err = cli("fit", "--resume", tmp_path / "a")
    assert code == 0, err
    assert cli(*args, "--out", tmp_path / "b")[0] == 0
    assert files(tmp_path / "a")["model/model.safetensors"] == files(tmp_path / "b")["model/model.safetensors"]
    assert stop("step 2", *args, "--out", tmp_path / "c")[0] == 143
    write([("the bad day was 29", "good") if r == ("the bad day was 29", "bad") else r for r in rows][1:])
    code, _, err = cli("fit", "--resume", tmp_path / "c")
    assert code == 3 and "removed" in err, err


def test_changed_weights_of_the_source_are_refused(left, cli, tmp_path, weights):
    from safetensors.torch import load_file, save_file

    run, _ = left
    mine = tmp_path / "mine.safetensors"
    state = load_file(weights)
    state["fc.bias"] = state["fc.bias"] + 1
    save_file(state, mine)
    code, _, err = cli("fit", "--resume", run, "--weights", mine, "--accept-changes")
    assert code == 0, err
    assert any("weights of" in c for c in read_result(run)["resumed"][0]["changes"])


@pytest.mark.fault(17)
def test_a_finished_run_is_left_alone(left, cli, monkeypatch):
    run, args = left
    assert cli("fit", "--resume", run)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    monkeypatch.setattr("regraft.pipeline.run.prepare", None)  # nothing is read or trained
    for again in (("fit", "--resume", run), ("fit", *args, "--out", run, "--resume")):
        code, out, err = cli(*again)
        assert code == 0, err
        assert "is finished: nothing is left to do" in err and "TARGET" in out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_what_cannot_be_resumed_says_so(left, cli, pictures, weights, tmp_path):
    run, args = left
    code, _, err = cli("fit", *args, "--out", run)
    assert code == 2 and f"go on with `regraft fit --resume {run}`" in err and "--out" in err
    code, _, err = cli("fit", "--resume", tmp_path / "nowhere")
    assert code == 2 and "plan.toml does not exist" in err
    code, _, err = cli("fit", *args, "--out", tmp_path / "x", "--accept-changes")
    assert code == 2 and "--accept-changes goes with --resume" in err
    # where there is nothing yet, a job's script may say --resume from the start
    code, _, err = cli("fit", *args, "--out", tmp_path / "new", "--resume")
    assert code == 0, err


@pytest.mark.fault(12)
def test_a_run_that_is_being_written_names_its_writer(left, cli):
    run, args = left
    me = locks.myself(False)
    (run / "lock").write_text(json.dumps(me.__dict__))
    for how in (("--resume",), ()):
        code, _, err = cli("fit", *args, "--out", run, *how)
        assert code == 2 and f"is being written by process {os.getpid()} on" in err, err
    gone = me.__dict__ | {"pid": 2**22 + 1}
    (run / "lock").write_text(json.dumps(gone))
    code, _, err = cli("fit", "--resume", run)
    assert code == 0, err
    assert f"the lock of process {2**22 + 1}" in (run / "log.txt").read_text()


@pytest.mark.fault(8)
@pytest.mark.fault(9)
def test_a_damaged_newest_checkpoint_costs_steps_but_no_bit(left, cli, tmp_path):
    run, args = left
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    (newest / "tensors.safetensors").write_bytes(content)
    (run / "checkpoints" / "checkpoint-999").mkdir()
    code, _, err = cli("fit", "--resume", run)
    assert code == 0, err
    assert f"{newest.name} is skipped: tensors.safetensors is not what" in err
    assert "checkpoint-999 is skipped" in err
    assert cli("fit", *args, "--out", tmp_path / "alone")[0] == 0
    assert files(run) == files(tmp_path / "alone")


# ---------------------------------------------------------------- signals


@pytest.fixture
def signalled(monkeypatch):
    """Signals that arrive in the middle of a step; an epoch has three of them."""
    from regraft.training.objective import Objective

    def call(*signals: int, at: int = 4) -> None:
        step, sent = Objective.step, list(signals)

        def with_signals(self: Any, *args: Any) -> Any:
            if args[-1] == at:
                while sent:
                    signal.raise_signal(sent.pop(0))
            return step(self, *args)

        monkeypatch.setattr(Objective, "step", with_signals)

    return call


@pytest.mark.fault(10)
@pytest.mark.fault(11)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(cli, signalled, pictures, weights, tmp_path, sent, code):
    args = ("fit", pictures, *tiny_source(weights), *QUICK, *MOVING, "--set", "run.checkpoint_every=500")
    signalled(sent)
    got, _, err = cli(*args, "--out", tmp_path / "run")
    assert got == code
    assert "stopped at step 5 of seed 0, which is saved" in err and "Traceback" not in err
    assert (tmp_path / "run" / "checkpoints" / "step-00000005").is_dir()
    assert not (tmp_path / "run" / "lock").exists()
    assert read_result(tmp_path / "run")["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert cli("fit", "--resume", tmp_path / "run")[0] == 0
    assert cli(*args, "--out", tmp_path / "alone")[0] == 0
    assert files(tmp_path / "run") == files(tmp_path / "alone")


@pytest.mark.fault(13)
def test_an_epoch_whose_end_was_not_saved_is_trained_again(cli, pictures, weights, tmp_path, monkeypatch):
    args = ("fit", pictures, *tiny_source(weights), *QUICK, *MOVING, "--set", "fit.average=0.9")
    out, step = tmp_path / "run", Objective.step

    def dies(self, batches, params, optimizer, epoch, number):
        if epoch == 3:
            raise KeyboardInterrupt
        return step(self, batches, params, optimizer, epoch, number)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "_due", lambda self, at: (at.batches, at.epoch) == (0, 2))
        patch.setattr(Objective, "step", dies)
        assert cli(*args, "--out", out)[0] == 130
    assert [p.name for p in (out / "checkpoints").glob("step-*")] == ["step-00000003-epoch-1"]
    assert len((out / "history.jsonl").read_text().splitlines()) == 3  # of the second epoch too
    assert cli("fit", "--resume", out)[0] == 0
    assert cli(*args, "--out", tmp_path / "alone")[0] == 0
    is_the_same(out, tmp_path / "alone")


@pytest.mark.fault(10)
def test_a_signal_in_an_epochs_first_step_stops_at_once(cli, signalled, pictures, weights, tmp_path):
    args = ("fit", pictures, *tiny_source(weights), *QUICK, *MOVING)
    signalled(signal.SIGTERM, at=3)
    got, _, err = cli(*args, "--out", tmp_path / "run")
    assert got == 143 and "Traceback" not in err
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == ["step-00000002", "step-00000003-epoch-1"]
    assert cli("fit", "--resume", tmp_path / "run")[0] == 0
    assert cli(*args, "--out", tmp_path / "alone")[0] == 0
    assert files(tmp_path / "run") == files(tmp_path / "alone")


@pytest.mark.fault(10)
def test_a_second_signal_stops_at_once_and_nothing_is_corrupt(cli, signalled, pictures, weights, tmp_path):
    args = ("fit", pictures, *tiny_source(weights), *QUICK, *MOVING)
    signalled(signal.SIGINT, signal.SIGINT)
    got, _, err = cli(*args, "--out", tmp_path / "run")
    assert got == 130 and "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoints" / "step-00000005").exists()
    assert cli("fit", "--resume", tmp_path / "run")[0] == 0
    assert cli(*args, "--out", tmp_path / "alone")[0] == 0
    assert files(tmp_path / "run") == files(tmp_path / "alone")


def environment() -> dict[str, str]:
    """Of a process of its own, with this test's cache and ledger."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.fault(24)
def test_a_terminated_process_leaves_no_worker_behind(cli, pictures, weights, tmp_path):
    out = tmp_path / "run"
    args = [pictures, *tiny_source(weights), *QUICK, *MOVING, "--epochs", 200, "--workers", 2]
    command = [sys.executable, "-m", "regraft", "fit", *map(str, args), "--out", str(out), "-q"]
    child = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    while not list(out.glob("checkpoints/step-*")) and child.poll() is None:
        time.sleep(0.05)
    workers = [int(p) for p in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 143, err
    assert "which is saved; go on with" in err and "Traceback" not in err
    assert json.loads((out / "result.json").read_text())["status"] == "interrupted"
    for _ in range(200):
        alive = [p for p in workers if Path(f"/proc/{p}").exists()]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


# ---------------------------------------------------------------- disks


@pytest.mark.fault(4)
def test_a_full_disk_ends_with_6_and_what_was_saved_is_good(cli, pictures, weights, tmp_path, monkeypatch):
    import errno

    from regraft.training import checkpoints

    real, count = checkpoints.save_tensors, [0]

    def full(tensors: Any, path: Path) -> None:
        count[0] += 1
        if count[0] == 4:
            from regraft.errors import DiskError

            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise DiskError(f"{path} cannot be written: it takes 1 bytes and 0 are free") from error
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_tensors", full)
    args = ("fit", pictures, *tiny_source(weights), *QUICK, *MOVING)
    code, _, err = cli(*args, "--out", tmp_path / "run")
    assert code == 6 and "bytes" in err and "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    monkeypatch.undo()
    assert cli("fit", "--resume", tmp_path / "run")[0] == 0


@pytest.mark.fault(5)
def test_a_full_disk_for_log_and_history_warns_once(cli, pictures, weights, tmp_path, monkeypatch):
    import errno

    real = os.fsync

    def full(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name in ("history.jsonl", "log.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = cli("fit", pictures, *tiny_source(weights), *QUICK, "--out", tmp_path / "run")
    assert code == 0, err
    for name in ("history.jsonl", "log.txt"):
        assert err.count(f"{name} cannot be written (No space left on device)") == 1
    assert (tmp_path / "run" / "history.jsonl").read_text() == ""  # no half lines


@pytest.mark.fault(6)
def test_a_read_only_folder_is_refused_before_anything_is_loaded(pictures, weights, tmp_path):
    folder = tmp_path / "readonly"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not (
        subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode
        or subprocess.run(["mount", "-o", "remount,ro,bind", folder], capture_output=True).returncode
    )
    if not mounted:
        folder.chmod(0o500)
    code = (
        "import sys\nfrom regraft.cli.app import main\n"
        f"sys.argv = ['regraft', 'fit', {str(pictures)!r}, '--source', 'timm:test_resnet', "
        f"'--out', {str(folder / 'run')!r}]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    print(e.code, 'torch' in sys.modules)\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        folder.chmod(0o700)
    assert done.stdout.strip() == "6 False", done
    assert "cannot be written" in done.stderr and "choose another --out" in done.stderr


@pytest.mark.fault(25)
def test_a_run_that_diverges_names_its_last_good_checkpoint(cli, pictures, weights, tmp_path, monkeypatch):
    from regraft.errors import DivergedError
    from regraft.training.objective import Objective

    step = Objective.step

    def broken(self: Any, *args: Any) -> Any:
        if args[-1] == 4:
            raise DivergedError("the loss is not finite at step 4")
        return step(self, *args)

    monkeypatch.setattr(Objective, "step", broken)
    code, _, err = cli("fit", pictures, *tiny_source(weights), *QUICK, *MOVING, "--out", tmp_path / "run")
    assert code == 5
    assert "the last good checkpoint is" in err and "step-00000004" in err


@pytest.mark.usefixtures("fast_processes")
def test_verify_resume_says_that_it_is_exact_and_leaves_nothing(cli, pictures, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    code, out, err = cli("verify-resume", pictures, *tiny_source(weights), *QUICK, *MOVING, "--steps", 3)
    assert code == 0, err
    assert "resume is exact here: killed with signal 9 in step 3, resumed, compared after step 6" in out
    assert not list((tmp_path / "t").glob("regraft-verify-*"))


def test_verify_resume_would_see_a_difference(tmp_path):
    import torch

    from regraft.commands.verify_resume import Verified, differences
    from regraft.training.records import Saved

    one = Saved({"at": {"step": 1}}, {"model/w": torch.ones(3), "random/cpu": torch.zeros(2, dtype=torch.uint8)})
    other = Saved({"at": {"step": 1}}, {**one.tensors, "model/w": torch.tensor([1.0, 1.0, 1 + 2**-23])})
    assert differences(one, one) == ()
    (found,) = differences(one, other)
    assert found.startswith("model/w is 1.19e-07 apart")
    assert "NOT exact" in str(Verified(3, 6, 2, (found,)))
    zero = {"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}
    assert differences(Saved({"at": 0}, zero[0]), Saved({"at": 0}, zero[1]))  # to the sign of a zero
