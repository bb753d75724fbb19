"""What every file of exports/ keeps."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from regraft import plugins
from regraft.data.images import read_picture
from regraft.data.types import ImageSpec
from regraft.exports import _shared


@pytest.fixture(params=plugins.names("exports"))
def format(request):
    return plugins.module("exports", request.param)


def test_it_says_what_it_needs_and_how_it_is_checked(format):
    assert isinstance(format.needs, tuple) and format.library
    assert isinstance(format.with_regraft, bool)
    assert isinstance(format.folds, bool)
    for name, parameters in (("refusal", 1), ("write", 2), ("snippet", 1)):
        assert len(inspect.signature(getattr(format, name)).parameters) == parameters


def test_only_what_keeps_the_task_leaves_scaling_to_regraft(format):
    assert format.folds or format.with_regraft


@pytest.mark.fault(49)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("uint16", 0, 65535),
        ("uint16", 0, 90),
        ("int32", -40, 70_000),
        ("float32", 0, 1),
        ("float32", 0, 255),
        ("float32", -3, 9),
    ],
)
def test_an_exports_lines_read_deep_pictures_as_the_run_does(tmp_path, channels, dtype, low, high):
    values = np.linspace(low, high, 48).reshape(6, 8).astype(dtype)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    Image.new("RGBA", (4, 4), (200, 10, 10, 100)).save(tmp_path / "clear.png")
    spec = ImageSpec((8, 8), 8, mean=(0.5,) * channels, std=(0.5,) * channels)
    package = SimpleNamespace(source=SimpleNamespace(preprocess=spec))
    names: dict[str, object] = {"np": np, "Image": Image, "ImageOps": ImageOps}
    exec(_shared.reading(package), names)
    for name in ("deep.tif", "clear.png"):
        ours, theirs = read_picture(tmp_path / name, channels), names["read"](tmp_path / name)
        assert theirs.mode == ours.mode and np.array_equal(theirs, ours)
