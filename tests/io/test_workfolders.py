"""What a killed writer left is removed by the next one; what is not proven to be left is not touched."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import asdict

import pytest

from regraft.errors import DiskError
from regraft.io import locks
from regraft.io.work_folders import abandoned, sweep, temporary_folder, work_folder

DIE = """
import os, signal, sys
from pathlib import Path
from regraft.io.work_folders import work_folder
with work_folder(Path(sys.argv[1]), "killed") as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left(folder, name="left.0123456789abcdef.part", **changes):
    """A work folder whose owner is a pid that nobody has, unless changes say otherwise."""
    place = folder / name
    (place / "content").mkdir(parents=True)
    record = asdict(locks.myself(False)) | {"pid": 2**22 + 1} | changes
    (place / "owner").write_text(json.dumps(record))
    return place


@pytest.mark.fault(91)
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    command = [sys.executable, "-c", DIE, tmp_path]
    assert subprocess.run(command, check=False).returncode == -9
    (gone,) = abandoned(tmp_path)
    assert (gone / "content" / "half").read_text() == "x"
    with work_folder(tmp_path, "next") as folder:
        (folder / "whole").write_text("y")
        assert not gone.exists() and not abandoned(tmp_path)  # not one's own, nor another's
        folder.rename(tmp_path / "place")
    assert [p.name for p in tmp_path.rglob("*")] == ["place", "whole"]


@pytest.mark.parametrize(
    "name",
    [
        "tmp-host-1-x",
        "tmp-host-x-y",
        "left.part",
        "left.0123456789ABCDEF.part",
        ".0123456789abcdef.part",
        "left.0123456789abcdef.part.zip",
        "left.0123456789abcdef.part\n",
    ],
)
def test_a_folder_of_another_name_is_left_alone(tmp_path, name):
    assert left(tmp_path, name).exists()
    assert sweep(tmp_path) == [] and (tmp_path / name / "content").exists()


@pytest.mark.parametrize("apart", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}, {"started": "another boot 1"}])
def test_what_may_be_written_elsewhere_is_left_alone(tmp_path, apart):
    left(tmp_path, "far.0123456789abcdef.part", **apart)
    gone = left(tmp_path)
    assert sweep(tmp_path) == [gone] and len(list(tmp_path.iterdir())) == 1


def test_folders_without_a_record_and_links_are_left_alone(tmp_path):
    owned = left(tmp_path / "other", "x.0123456789abcdef.part")
    (tmp_path / "link.0123456789abcdef.part").symlink_to(owned)
    (tmp_path / "bare.0123456789abcdef.part").mkdir()
    (tmp_path / "file.0123456789abcdef.part").write_text("mine")
    damaged = left(tmp_path, "odd.0123456789abcdef.part")
    (damaged / "owner").write_text("{}")
    piped = left(tmp_path, "pipe.0123456789abcdef.part")
    (piped / "owner").unlink()
    os.mkfifo(piped / "owner")
    assert sweep(tmp_path) == [] and sweep(tmp_path / "nowhere") == []
    assert len(list(tmp_path.iterdir())) == 6 and owned.exists()


def test_what_another_user_left_is_left_alone(tmp_path, monkeypatch):
    place = left(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert sweep(tmp_path) == [] and place.exists()


def test_a_temporary_folder_is_private_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="mine"), temporary_folder("regraft-x") as folder:
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(DiskError, match="cannot be written"), temporary_folder("regraft-x"):
        pass
