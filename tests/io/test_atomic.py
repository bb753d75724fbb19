"""A file or a folder is written whole or not at all, and reaches the disk before its name does."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from regraft.errors import DiskError
from regraft.io.atomic import disk_errors, move_folder, write_file, write_new
from regraft.io.hashing import file_digest


@pytest.fixture
def steps(monkeypatch):
    """Syncs and renames in their order, each with the name that it was for."""
    done: list[tuple[str, str]] = []
    fsync = os.fsync

    def note_sync(handle):
        done.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note_sync)
    replace, rename = Path.replace, Path.rename

    def noted(method):
        return lambda self, target: (done.append(("name", Path(target).name)), method(self, target))[1]

    monkeypatch.setattr(Path, "replace", noted(replace))
    monkeypatch.setattr(Path, "rename", noted(rename))
    return done


def test_a_file_is_synced_before_it_takes_its_name(tmp_path, steps):
    write_file(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    assert steps == [("sync", ".a.part"), ("name", "a"), ("sync", tmp_path.name)]


def test_a_folder_is_synced_before_it_takes_its_name(tmp_path, steps):
    (tmp_path / "part").mkdir()
    write_new(tmp_path / "part" / "a", b"x")
    move_folder(tmp_path / "part", tmp_path / "place")
    assert steps == [("sync", "a"), ("sync", "part"), ("name", "place"), ("sync", tmp_path.name)]


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = "a cannot be written: No space left on device; make room"
    with pytest.raises(DiskError, match=said), disk_errors(tmp_path / "a", "make room"):
        write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in ("a", ".a.part"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    write_file(tmp_path / "a", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a").is_symlink()


def test_a_mode_limits_who_may_read(tmp_path):
    write_file(tmp_path / "a", "x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_new_file_never_replaces_one(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", "new")


def test_a_digest_is_the_same_by_path_and_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with (tmp_path / "a").open("rb") as file:
        assert file_digest(file) == file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
