"""A picture that is another than when the data were read stops what reads it, by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builders import make_batches
from regraft.data import images as module
from regraft.data.image_store import ImageStore
from regraft.data.loading import read_rows
from regraft.data.preprocessing import build
from regraft.data.store import FeatureCache
from regraft.data.types import DataOptions, ImageSpec
from regraft.errors import DataError

SPEC = ImageSpec(size=(16, 16), resize=16)


@pytest.fixture
def rows(tmp_path, shapes):
    """Six pictures, identified by their content."""
    return read_rows(DataOptions(shapes(tmp_path / "data", {"": {"a": 3, "b": 3}}))).examples


def read(rows, workers=0, spec=SPEC):
    batches = make_batches(rows, torch.zeros(len(rows)), build(spec), 2, workers=workers)
    return batches, torch.cat([x for _, x, _ in batches])


@pytest.mark.fault(57)
def test_other_pixels_are_not_kept_under_a_pictures_content(rows, tmp_path):
    store = ImageStore(FeatureCache(tmp_path, 10**9), build(SPEC), True, 2, print)
    named = {e.content: e for e in rows}
    assert len(list(store.decode(named))) == 6
    path = Path(rows[4].inputs[0])
    replace_content(path)
    with pytest.raises(DataError, match=f"{path} was changed after the data were read"):
        list(store.decode(named))


def replace_content(path: Path, keep_times: bool = False) -> None:
    before = path.stat()
    Image.fromarray(np.full((24, 24, 3), 200, np.uint8)).save(path)
    if keep_times:  # as a copying tool may leave them
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.fault(57)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_picture_is_named(rows, workers, keep_times):
    path = Path(rows[4].inputs[0])
    replace_content(path, keep_times)
    with pytest.raises(DataError, match=f"{path} was changed after the data were read"):
        read(rows, workers)


@pytest.mark.fault(57)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_deleted_picture_is_named(rows, workers):
    path = Path(rows[4].inputs[0])
    path.unlink()
    with pytest.raises(DataError, match=f"{path} was there when the data were read and cannot"):
        read(rows, workers)


@pytest.mark.fault(57)
def test_a_change_between_two_epochs_is_seen(rows):
    batches, before = read(rows)
    path = Path(rows[4].inputs[0])
    content = path.read_bytes()
    replace_content(path)
    with pytest.raises(DataError, match="was changed"):
        list(batches)
    path.write_bytes(content)  # put back, with another time
    assert torch.equal(torch.cat([x for _, x, _ in batches]), before)
    path.unlink()
    os.mkfifo(path)  # which nobody ever writes to
    with pytest.raises(DataError, match="not a regular file"):
        list(batches)


@pytest.mark.fault(57)
def test_a_picture_is_hashed_once_as_long_as_its_file_stays(rows, monkeypatch):
    hashed = []
    real = module.file_digest
    monkeypatch.setattr(module, "file_digest", lambda path: (hashed.append(path), real(path))[1])
    batches, _ = read(rows)
    list(batches)
    assert sorted(map(str, hashed)) == sorted(e.inputs[0] for e in rows)


@pytest.mark.fault(57)
def test_a_run_whose_data_change_ends_with_3_and_names_the_file(tmp_path, shapes, tiny_weights):
    import regraft

    data = shapes(tmp_path / "data", {"train": {"a": 12, "b": 12}, "test": {"a": 4, "b": 4}})
    path = data / "train/b/3.png"
    settings = {
        "source.weights": tiny_weights[3],
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 2,
        "fit.batch_size": 8,
        "run.cache": "off",
    }

    def say(line):
        if line.startswith("linear probe"):
            replace_content(path)

    with pytest.raises(DataError, match=r"b/3\.png was changed after the data were read") as caught:
        regraft.fit(data, source="timm:test_resnet", out=tmp_path / "run", settings=settings, say=say)
    assert caught.value.exit_code == 3
    assert '"status": "failed"' in (tmp_path / "run/result.json").read_text()
