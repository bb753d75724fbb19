"""Pictures that cost much: refused by their structure, or decoded in a process that is ended."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

import costly_pictures as costly
from regraft.data import decoding
from regraft.data import images as pictures
from regraft.data.decoding import Decoders, Lookers, StoppedError, Wanted, Worker, vet
from regraft.data.image_costs import bounded, excess
from regraft.data.images import TooCostlyError, TooManyPixelsError, facts_of, picture_of, reason, resized, size_after
from regraft.data.loading import read_rows
from regraft.data.preprocessing import ImagePreprocessor
from regraft.data.types import DataOptions, ImageSpec
from regraft.errors import DataError

HUNG_S = 120  # what takes longer hangs
WANTED = Wanted(3, 16, Image.Resampling.BICUBIC)


@pytest.fixture
def small(tmp_path):
    """A picture whose decoding costs nothing."""
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save(tmp_path / "small.png")
    return tmp_path / "small.png"


@pytest.fixture
def decoders():
    found = Decoders(workers=1)
    yield found
    found.close()


# ---------------------------------------------------------------- by the structure of the file


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (costly.ppm_of_comments(0.01), "more than 1000 comments"),
        (b"P6 " + b" " * 70_000 + b"1 1 255\n abc", "header has more than 65536 bytes"),
        (b"P6 #" + b"c" * 70_000 + b"\n1 1 255\nabc", "header has more than 65536 bytes"),
        (costly.jpeg_of_scans(64, 101), "more than 100 scans"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 20_000 + b"\xff\xd9", "more than 20000 segments"),
        (costly.png_of_chunks(0.3), "too many chunks"),
    ],
)
def test_a_structure_that_costs_much_is_refused(content, words):
    with pytest.raises(TooCostlyError, match=words):
        picture_of(content)


def test_what_encoders_write_is_not_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x010E] = "an \xff\xda in a description " * 50
    for name, how in {
        "a.jpg": {"progressive": True, "exif": exif, "comment": b"\xff\xda" * 500},
        "b.jpg": {"quality": 100, "subsampling": 0, "icc_profile": b"\xff\xda" * 40_000},
        "c.png": {},
        "d.ppm": {},
        "e.gif": {},
        "f.webp": {},
        "g.tif": {"compression": "jpeg"},
        "h.bmp": {},
    }.items():
        picture.save(tmp_path / name, **how)
        assert excess((tmp_path / name).read_bytes()) is None, name
    assert bounded(tmp_path / "c.png")
    assert not bounded(tmp_path / "b.jpg")  # what looks like scans is left to a worker


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with Lookers() as lookers, pytest.raises(DataError, match="not a regular file"):
        lookers.look(tmp_path / "pipe.jpg")


# ---------------------------------------------------------------- what a conversion takes


def converted(image, channels):
    """The whole picture at once, by the definition."""
    if image.mode[0] in "IF":
        values = np.asarray(image, np.float64)
        limits = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
        limit = next((x for x in limits if values.min() >= 0 and values.max() <= x), None)
        if limit is None:
            values, limit = values - values.min(), values.max() - values.min()
        image = Image.fromarray(np.round(values * (255 / limit)).astype(np.uint8))
    elif image.has_transparency_data and channels != 4:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(pictures.MODES[channels])


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P", "palette with alpha"])
def test_strips_give_what_the_whole_picture_gives(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STRIP_PIXELS", 300)
    rng = np.random.default_rng(1)
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in deep:
        image = Image.fromarray((rng.normal(size=(61, 47)) * 9000 + 20_000).astype(deep[mode]))
    else:
        image = Image.fromarray(rng.integers(0, 256, (61, 47, 4), dtype=np.uint8))
        image = image.quantize(9) if mode == "palette with alpha" else image.convert(mode)
    kind = "png" if mode[0] in "Pp" else "tif"
    how = {"transparency": 3} if mode == "P" else {}
    image.save(tmp_path / f"a.{kind}", **how)
    content = (tmp_path / f"a.{kind}").read_bytes()
    for channels in (1, 3, 4):
        with Image.open(tmp_path / f"a.{kind}") as file:
            file.load()
            whole = converted(file, channels)
        found = picture_of(content, channels)
        assert found.mode == whole.mode and found.tobytes() == whole.tobytes()


@pytest.mark.fault(82)
def test_a_deep_picture_is_scaled_without_copies_of_it():
    content = costly.deep_png(4000, 2000)
    tracemalloc.start()
    picture = picture_of(content, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.size == (4000, 2000)
    assert peak < 50e6  # of numpy: 8 M pixels are 64 MB as numbers of 64 bits


@pytest.mark.parametrize("wanted", [16, 33, (20, 40)])
def test_a_size_is_that_of_torchvision(wanted):
    rng = np.random.default_rng(2)
    for width, height in [(1, 1), (16, 16), (17, 16), *rng.integers(1, 90, (20, 2)).tolist()]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        size = wanted if isinstance(wanted, int) else list(wanted)
        theirs = v2.Resize(size, v2.InterpolationMode.BICUBIC)(image)
        ours = resized(image, wanted, Image.Resampling.BICUBIC)
        assert ours.tobytes() == theirs.tobytes() and size_after(image.size, wanted) == theirs.size
        assert resized(ours, wanted, Image.Resampling.BICUBIC) is ours


def test_a_narrow_picture_does_not_grow_without_bound(decoders, tmp_path):
    content = costly.deep_png(2, 1_000_000)
    words = "2 × 1000000 pixels would become 16 × 8000000"
    with pytest.raises(TooCostlyError, match=words):
        decoders.submit(content, WANTED).result(HUNG_S)
    (tmp_path / "narrow.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"narrow\.png cannot be read as a picture: its {words}"):
        ImagePreprocessor(ImageSpec((16, 16), 16)).one((str(tmp_path / "narrow.png"),))


def test_a_worker_that_was_killed_between_pictures_is_replaced(decoders, small):
    first = decoders._workers[0][0].start()
    first.kill()
    first.wait(HUNG_S)
    assert decoders.submit(small.read_bytes(), WANTED).result(HUNG_S).size == (16, 16)


# ---------------------------------------------------------------- in a process


@pytest.mark.fault(82)
def test_a_worker_with_too_slow_a_picture_is_replaced(decoders, small, monkeypatch):
    monkeypatch.setattr(decoding, "QUICK_CPU_S", 0.2)
    monkeypatch.setattr(decoding, "SLOW_CPU_S", 0.3)
    first = decoders._workers[1][0].start()  # the one for large files
    with pytest.raises(TooCostlyError, match=r"decoding takes more than 0\.3 s"):
        decoders.submit(costly.gif_of_blocks(6), WANTED).result(HUNG_S)
    assert first.poll() is not None  # it is ended, and with it the work
    picture = decoders.submit(small.read_bytes(), WANTED).result(HUNG_S)
    whole = picture_of(small.read_bytes())
    assert picture.tobytes() == resized(whole, 16, Image.Resampling.BICUBIC).tobytes()


@pytest.mark.fault(82)
def test_slow_pictures_wait_for_each_other_and_others_do_not(decoders, small, monkeypatch):
    monkeypatch.setattr(decoding, "QUICK_CPU_S", 0.2)
    monkeypatch.setattr(decoding, "SLOW_CPU_S", 600.0)
    slow = [decoders.submit(costly.gif_of_blocks(18), WANTED) for _ in range(4)]
    for _ in range(3):
        assert decoders.submit(small.read_bytes(), WANTED).result(HUNG_S).size == (16, 16)
    assert not all(answer.done() for answer in slow)
    slow[3].cancel()
    decoders.close()  # whatever they do
    for answer in slow[:3]:
        if not answer.done() or answer.exception() is not None:
            with pytest.raises(StoppedError, match="stopped"):
                answer.result(HUNG_S)
    with pytest.raises(StoppedError, match="stopping"):
        decoders.submit(small.read_bytes(), WANTED)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_a_picture_that_takes_too_much_memory_is_refused(monkeypatch):
    monkeypatch.setattr(decoding, "BASE_BYTES", 250_000_000)
    worker = Worker(pixels=0)
    try:
        head, _ = worker.ask(
            {"channels": 3, "max_pixels": 50_000_000, "resize": 16, "resample": 3},
            costly.deep_png(7000, 7000),
            60,
            HUNG_S,
        )
        assert head["kind"] == "cost" and "memory" in head["error"]
    finally:
        worker.close()


@pytest.mark.parametrize("most", [200_000, 9_999])  # decoded beside others, or in turn
def test_a_worker_gives_the_bits_of_this_process(decoders, most, monkeypatch):
    monkeypatch.setattr(decoding, "QUICK_PIXELS", most)
    noise = np.random.default_rng(3).integers(0, 256, (100, 101, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    found = decoders.submit(file.getvalue(), WANTED).result(HUNG_S)
    assert found.tobytes() == resized(picture_of(file.getvalue()), 16, 3).tobytes()
    with pytest.raises(TooManyPixelsError, match=r"0\.009 megapixels"):
        decoders.submit(file.getvalue(), replace(WANTED, max_pixels=9_000)).result(HUNG_S)


# ---------------------------------------------------------------- in a data folder


@pytest.fixture
def folder(tmp_path):
    """Two classes, and a picture that takes seconds to decode."""
    for name, colour in (("blue", 40), ("red", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((8, 8, 3), colour, np.uint8)
            pixels[i] = 9
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "red" / "slow.gif").write_bytes(costly.gif_of_blocks(6))
    return tmp_path / "data"


@pytest.mark.fault(82)
def test_a_picture_that_takes_too_long_cannot_be_used(folder, monkeypatch):
    monkeypatch.setattr(decoding, "LOOK_CPU_S", 0.3)
    words = r"1 of 13 pictures cannot be used: .*slow\.gif \(decoding takes more than 0\.3 s\)"
    with pytest.raises(DataError, match=words):
        read_rows(DataOptions(folder))
    rows = read_rows(DataOptions(folder, on_bad="skip"))
    assert len(rows.examples) == 12 and "takes more than" in rows.unreadable[0][1]
    with pytest.raises(DataError, match=r"slow\.gif cannot be read as a picture: decoding takes"):
        vet([str(folder / "red" / "slow.gif")])


def test_a_worker_finds_the_facts_of_this_process(tmp_path):
    noise = np.random.default_rng(4).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.tif")
    (tmp_path / os.fsdecode(b"\xff.tif")).symlink_to("a.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-9])
    with Lookers() as lookers, ThreadPoolExecutor(2) as pool:
        for name in ("a.tif", os.fsdecode(b"\xff.tif")):
            assert not bounded(tmp_path / name)
            assert pool.submit(lookers.look, tmp_path / name).result() == facts_of(tmp_path / name)
        assert len(lookers._all) == 1
        with pytest.raises(DataError) as here:
            facts_of(tmp_path / "cut.tif")
        with pytest.raises(DataError) as there:
            lookers.look(tmp_path / "cut.tif")
        assert reason(here.value) == reason(there.value) != ""


def test_ordinary_pictures_start_no_process(folder, monkeypatch):
    (folder / "red" / "slow.gif").unlink()
    Image.new("L", (9, 9)).save(folder / "red" / "a.jpg")
    monkeypatch.setattr(decoding, "_started", lambda arguments: pytest.fail("a process"))
    assert len(read_rows(DataOptions(folder)).examples) == 13
