"""Checkpoints on disk: complete or absent, checked, pruned; a full disk and a rename that fails."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.errors import DiskError, DivergedError
from regraft.io.log import lines_to
from regraft.training import checkpoints
from regraft.training.checkpoints import CheckpointManager, DamagedError, read, verify, write
from regraft.training.records import Progress
from regraft.training.signals import Interrupted

TENSORS = {"model/w": torch.arange(6.0).view(2, 3), "random/cpu": torch.arange(9, dtype=torch.uint8)}


def at(step: int, batches: int = 1) -> Progress:
    return Progress(step=step, batches=batches, sums={"task": step / 3})


def keeper(folder: Path, **how) -> CheckpointManager:
    made = CheckpointManager(folder, steps=1, **how)
    made.scan()
    return made


def saved(folder: Path, count: int = 3, arm: str = "seed 0") -> CheckpointManager:
    made = keeper(folder)
    for step in range(1, count + 1):
        made.save(arm, at(step), lambda step=step: {"model/w": torch.full((3,), float(step))})
    return made


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_read_is_what_was_written(tmp_path):
    write(tmp_path / "c", {"at": {"sums": {"task": 0.1 + 0.2}}}, TENSORS)
    got = read(tmp_path / "c")
    assert got.record == {"at": {"sums": {"task": 0.1 + 0.2}}}
    assert all(torch.equal(got.tensors[n], t) for n, t in TENSORS.items())
    assert names(tmp_path) == ["c"]
    check = subprocess.run(["sha256sum", "-c", "MANIFEST.sha256"], cwd=tmp_path / "c", capture_output=True)
    assert check.returncode == 0, check.stdout


def test_the_last_two_of_an_arm_stay_until_a_finished_part(tmp_path):
    k = saved(tmp_path, 5)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    k.save("seed 0", at(5, batches=0), lambda: TENSORS)
    assert names(tmp_path) == ["step-00000005", "step-00000005-epoch-0"]
    k.finish("seed 0", {"fit": 1}, TENSORS)
    assert names(tmp_path) == ["done-seed-0"]
    again = keeper(tmp_path)
    assert again.done("seed 0").record["fit"] == 1 and again.done("seed 1") is None
    assert again.latest("seed 1") is None


def test_an_arm_without_a_result_leaves_its_steps_to_the_next(tmp_path):
    """An arm of the same steps would else take the other's checkpoint for its own."""
    k = saved(tmp_path, arm="scratch 0.3")
    k.forget()
    assert names(tmp_path) == []
    k.save("scratch 0.1", at(3), lambda: TENSORS)
    found = keeper(tmp_path).latest("scratch 0.1")
    assert found is not None and found.record["at"]["step"] == 3


def test_steps_minutes_and_epochs_decide_when(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    k = CheckpointManager(tmp_path, seconds=60)
    k.last = 0.0

    def there():
        return {p.name for p in tmp_path.iterdir()}

    k.save("a", at(1), lambda: TENSORS)
    assert there() == set()
    now[0] = 61
    k.save("a", at(2), lambda: TENSORS)
    k.save("a", at(3), lambda: TENSORS)
    assert there() == {"step-00000002"}
    k.save("a", at(3, batches=0), lambda: TENSORS)
    assert there() == {"step-00000002", "step-00000003-epoch-0"}


def slowly(monkeypatch, cost: float) -> list[float]:
    """A clock that only a checkpoint moves, by ``cost`` seconds: [now]."""
    now, written = [0.0], checkpoints.write
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def write_slowly(*args) -> None:
        written(*args)
        now[0] += cost

    monkeypatch.setattr(checkpoints, "write", write_slowly)
    return now


def test_epochs_ends_take_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    now = slowly(monkeypatch, cost=1.0)
    k = CheckpointManager(tmp_path, seconds=600)
    saved_at = []
    with k.fitting():
        for epoch in range(1, 200):
            now[0] += 0.5
            count, before = k.count, now[0]
            k.save("a", Progress(step=epoch, epoch=epoch + 1), lambda: TENSORS)
            if k.count > count:
                saved_at.append(before)
                assert not k.signals.patient  # all is saved
            else:
                assert k.signals.patient  # a signal is saved for at the next step's end
    assert saved_at[:3] == [0.5, 10.5, 20.5]  # a second, and nine of training
    assert k.count == pytest.approx(0.1 * now[0], abs=1)


def test_finished_parts_and_gathered_weights_are_no_cheap_ends(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    k = CheckpointManager(tmp_path, seconds=600, last=0.0)
    saving = 0

    def gather() -> dict[str, torch.Tensor]:  # of divided weights: the writing is the least of it
        nonlocal saving
        now[0] += 1.0
        saving += 1
        return TENSORS

    for fold in range(20):
        with k.fitting():
            for epoch in range(1, 5):
                now[0] += 0.25
                k.save(f"fold {fold}", Progress(step=epoch, epoch=epoch + 1), gather)
        k.finish(f"fold {fold}", {}, {"logits": torch.zeros(3)})  # at once
    assert saving == 1  # of 20 seconds: an arm of one second is sooner trained again


def test_an_epoch_much_longer_than_its_checkpoint_is_saved(tmp_path, monkeypatch):
    now = slowly(monkeypatch, cost=1.0)
    k = CheckpointManager(tmp_path, seconds=600, last=0.0)
    for epoch in range(1, 5):
        now[0] += 9.0
        k.save("a", Progress(step=epoch, epoch=epoch + 1), lambda: TENSORS)
    assert k.count == 4


def test_rank_0_decides_for_all_whether_an_epochs_end_is_saved(tmp_path, monkeypatch):
    """The others, which never write, would think each end worth it, and stop at a signal that the first waits for."""
    asked = []

    def told(due: bool) -> bool:
        asked.append(due)
        return False

    monkeypatch.setattr(checkpoints.distributed, "broadcast", told)
    other = CheckpointManager(tmp_path, seconds=600, writes=False)
    other.save("a", at(1), lambda: TENSORS)
    assert asked == []  # within an epoch nobody waits for anybody
    other.save("a", at(2, batches=0), lambda: TENSORS)
    assert asked == [True] and other.signals.patient and other.good == []


def test_with_a_number_of_steps_every_epochs_end_is_saved(tmp_path, monkeypatch):
    slowly(monkeypatch, cost=1.0)
    k = CheckpointManager(tmp_path, steps=100)
    for epoch in range(1, 5):
        k.save("a", Progress(step=epoch, epoch=epoch + 1), lambda: TENSORS)
    assert k.count == 4


def test_a_signal_after_the_last_epoch_is_not_forgotten(tmp_path, monkeypatch):
    """The last epoch's end was not worth saving, so the signal waited for a step that never came."""
    now = slowly(monkeypatch, cost=1.0)
    k = CheckpointManager(tmp_path, seconds=600)
    with pytest.raises(Interrupted, match="which is not saved") as stop, k.fitting():
        for step in (1, 2):
            now[0] += 0.5
            k.save("a", Progress(step=step, epoch=step + 1), lambda: TENSORS)
        k.signals.on_signal(signal.SIGTERM, None)
    assert k.count == 1 and stop.value.exit_code == 143
    assert not k.signals.patient


def test_a_signal_in_a_step_that_diverges_is_not_forgotten(tmp_path):
    """A rate of scratch that diverges is out, and the run goes on."""
    k = keeper(tmp_path)
    with pytest.raises(DivergedError), k.fitting():
        raise DivergedError("nan")
    with pytest.raises(Interrupted) as stop, k.fitting():
        k.save("a", at(1), lambda: TENSORS)
        k.signals.on_signal(signal.SIGINT, None)
        raise DivergedError("nan")
    assert stop.value.exit_code == 130
    with pytest.raises(DiskError), k.fitting():  # any other error says itself
        raise DiskError("full")


@pytest.mark.fault(18)
def test_a_clock_that_jumps_does_not_choose_the_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 3)
    os.utime(tmp_path / "step-00000002", (4e9, 4e9))  # in the year 2096
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert keeper(tmp_path).latest("seed 0").record["at"]["step"] == 3


# ---------------------------------------------------------------- what is damaged


@pytest.mark.fault(8)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_seen_and_the_one_before_is_used(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    saved(folder, 3)
    newest = folder / "step-00000003"
    file = newest / data.draw(st.sampled_from([p.name for p in sorted(newest.iterdir())]))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    said = []
    with lines_to(said.append):
        k = keeper(folder)
    assert k.latest("seed 0").record["at"]["step"] == 2
    assert len([s for s in said if "step-00000003 is skipped" in s]) == 1
    # and the run goes on: the damaged one is written anew
    k.save("seed 0", at(3), lambda: TENSORS)
    assert verify(newest)["at"]["step"] == 3


@pytest.mark.fault(9)
def test_what_is_incomplete_or_foreign_is_skipped_and_named(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "checkpoint-999").mkdir()
    (tmp_path / "checkpoint-999" / "model.bin").write_bytes(b"abc")
    (tmp_path / "step-00000999").mkdir()
    shutil.copy(tmp_path / "step-00000002" / "tensors.safetensors", tmp_path / "step-00000999")
    (tmp_path / "notes.txt").write_text("mine")
    said = []
    with lines_to(said.append):
        k = keeper(tmp_path)
    assert k.latest("seed 0").record["at"]["step"] == 2
    text = "\n".join(said)
    for name in ("checkpoint-999", "step-00000999", "notes.txt"):
        assert f"{name} is skipped" in text
    assert "MANIFEST.sha256 is missing" in text
    k.save("seed 0", at(3), lambda: TENSORS)
    assert {"checkpoint-999", "notes.txt", "step-00000003"} <= set(names(tmp_path))


@pytest.mark.parametrize("missing", ["tensors.safetensors", "record.json", "MANIFEST.sha256"])
def test_a_missing_file_is_named(tmp_path, missing):
    write(tmp_path / "c", {}, TENSORS)
    (tmp_path / "c" / missing).unlink()
    with pytest.raises(DamagedError, match=missing):
        verify(tmp_path / "c")


# ---------------------------------------------------------------- kills and order


CHILD = """
import sys, torch
from pathlib import Path
from regraft.training.checkpoints import CheckpointManager
from regraft.training.records import Progress
k = CheckpointManager(Path(sys.argv[1]), steps=1)
k.scan()
for step in range(1, 5):
    at = Progress(step=step, batches=1)
    k.save("seed 0", at, lambda: {"model/w": torch.full((3,), float(step))})
"""


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("point", "step"), [("renamed step-00000003", 3), ("written step-00000003", 2), ("renamed step-00000001", 1)]
)
def test_a_kill_in_the_middle_of_a_save_leaves_a_good_one(tmp_path, point, step):
    env = os.environ | {"REGRAFT_FAILPOINT": f"kill {point}"}
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path], env=env, capture_output=True)
    assert done.returncode == -9, done.stderr
    if point.startswith("written"):
        assert (tmp_path / "tmp-step-00000003").is_dir()
    k = keeper(tmp_path)
    got = k.latest("seed 0")
    assert got.record["at"]["step"] == step
    assert torch.equal(got.tensors["model/w"], torch.full((3,), float(step)))
    assert not list(tmp_path.glob("tmp-*"))  # swept


@pytest.mark.fault(3)
def test_files_reach_the_disk_before_their_name_does(tmp_path, monkeypatch):
    """fsync of every file, then of the folder, then the rename, then fsync of the parent."""
    done = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(handle):
        done.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def note_rename(self, target):
        done.append(("rename", Path(target).name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write(tmp_path / "c", {}, TENSORS)
    assert done == [
        ("sync", "tensors.safetensors"),
        ("sync", "record.json"),
        ("sync", "MANIFEST.sha256"),
        ("sync", "tmp-c"),
        ("rename", "c"),
        ("sync", tmp_path.name),
    ]


@pytest.mark.fault(7)
def test_where_a_folder_cannot_be_renamed_the_one_before_stays(tmp_path, monkeypatch):
    k = saved(tmp_path, 2)

    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DiskError, match=r"step-00000003 cannot be written: Invalid cross-device"):
        k.save("seed 0", at(3), lambda: TENSORS)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert keeper(tmp_path).latest("seed 0").record["at"]["step"] == 2


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder on a disk of 1 MB: a tmpfs where we may mount one, else a save that fails as there."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        import safetensors.torch

        real = safetensors.torch.save_file

        def full(tensors, path, *more):
            if sum(t.numel() * t.element_size() for t in tensors.values()) > 5e5:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(tensors, path, *more)

        monkeypatch.setattr(safetensors.torch, "save_file", full)
    yield folder
    if mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.fault(4)
def test_a_full_disk_says_what_it_takes_and_leaves_the_old_one(small_disk):
    k = saved(small_disk, 2)
    with pytest.raises(DiskError, match=r"it takes 4,000,000 bytes and [\d,]+ are free") as error:
        k.save("seed 0", at(3), lambda: {"model/w": torch.zeros(1_000_000)})
    assert error.value.exit_code == 6
    assert names(small_disk) == ["step-00000001", "step-00000002"]
    assert keeper(small_disk).latest("seed 0").record["at"]["step"] == 2


def test_a_failpoint_that_is_not_named_does_nothing(monkeypatch):
    monkeypatch.setenv("REGRAFT_FAILPOINT", "kill elsewhere")
    assert checkpoints.failpoint("here") is False
