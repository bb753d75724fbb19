"""What is wrong has a remedy; what is right has none."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict

import pytest

from regraft.commands import doctor
from regraft.commands.doctor import examine, format_findings
from regraft.compute import versions
from regraft.compute.versions import misfit, remedy_for_torch
from regraft.data.store import cache_in
from regraft.errors import UsageError
from regraft.io import locks


@pytest.mark.fault(86)
def test_a_torchvision_for_another_torch_has_a_remedy(monkeypatch):
    installed = {"torchvision": "0.29.1", "torch": "2.14.0+cpu"}

    def needs(torch):
        return lambda name: ["numpy", f"torch=={torch}", "pillow!=8.3.*,>=5.3.0"]

    assert misfit(installed.get, needs("2.14.0")) == ""
    said = misfit(installed.get, needs("2.15.1"))
    assert "built for torch 2.15.1, and 2.14.0+cpu is installed: pip install" in said
    assert misfit({"torch": "2.14.0"}.get, needs("2.14.0")) == "pip install torchvision"
    monkeypatch.setattr(versions, "misfit", lambda: said)
    with pytest.raises(UsageError, match="built for torch"):
        versions.check_torchvision()


@pytest.mark.fault(87)
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2.9.1", "older than 2.10"),
        ("1.13.0+cu117", "older than"),
        ("2.16.0", "newer than 2.15"),
        ("", "pip install torch"),
        ("2.10.0", ""),
        ("2.15.1+cpu", ""),
        ("2.16.0.dev20261101+cpu", "newer than 2.15"),
        ("2.15.0a0+git1234", ""),
    ],
)
def test_older_and_newer_torch_is_said(version, words):
    said = remedy_for_torch(version)
    assert words in said and bool(said) == bool(words)


def test_locks_of_a_folder_of_runs(tmp_path):
    for name, changes in (("stale", {"pid": 2**22 + 1}), ("far", {"pid": 1, "host": "elsewhere"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.toml").write_text("")
        record = asdict(locks.myself(False)) | changes
        (tmp_path / name / "lock").write_text(json.dumps(record))
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "plan.toml").write_text("")
    found = {f.says: f.remedy for f in doctor.locks_in(tmp_path)}
    stale = next(r for s, r in found.items() if "which is gone" in s)
    assert stale == f"regraft fit --resume {tmp_path / 'stale'}"
    far = next(r for s, r in found.items() if "process 1 on elsewhere" in s)
    assert far.startswith("if that run is gone: rm")
    assert "1 unfinished" in list(found)[-1]


def test_the_whole_examination_is_words_or_json(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1e18)
    found = examine(tmp_path)
    assert {"torch", "torchvision", "cpu", "feature cache", "ledger", "disk, here"} <= {f.what for f in found}
    text = format_findings(found)
    assert "make room on the disk" in text and "need attention" in text
    assert json.loads(json.dumps([asdict(f) for f in found]))


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert doctor.remedy_to_write(file, "X") == ""
    assert doctor.remedy_to_write(tmp_path, "X") == ""
    assert doctor.remedy_to_write(file.parent / "new" / "deeper", "X") == ""


def test_what_killed_processes_left_is_removed_and_listed(tmp_path, monkeypatch):
    temporary, runs = tmp_path / "tmp", tmp_path / "runs"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(temporary.parent)
    cache = cache_in("shared").root
    places = {
        "ranks": temporary / "regraft-ranks.0123456789abcdef.part",
        "export": runs / "one" / "exports" / ".export.0123456789abcdef.part",
        "entry": cache / "entry.0123456789abcdef.part",
        "far": cache / "entry.fedcba9876543210.part",
    }
    for name, place in places.items():
        (place / "content").mkdir(parents=True)
        (place / "content" / "half").write_bytes(b"x" * 500_000)
        record = asdict(locks.myself(False)) | {"pid": 2**22 + 1}
        record |= {"host": "elsewhere"} if name == "far" else {}
        (place / "owner").write_text(json.dumps(record))
    os.utime(places["far"] / "content", (0, 0))
    (runs / "one" / "plan.toml").write_text("")
    old, new = (runs / "one" / f".{n}.json.part" for n in ("result", "check"))
    other = tmp_path / "mine" / ".x.part"
    other.parent.mkdir()
    for file in (old, new, other):
        file.write_text("{")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    gone, far = doctor.leftovers(runs)
    assert gone.says.startswith("4 left by killed processes, 1.5 MB, removed: ") and not gone.remedy
    assert far.remedy == f"if that process is gone: rm -r {places['far']}"
    assert [p.exists() for p in places.values()] == [False, False, False, True]
    assert not old.exists() and new.exists() and other.exists()
    assert [f.says for f in doctor.leftovers(runs)] == [far.says]
