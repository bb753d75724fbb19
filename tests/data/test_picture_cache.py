"""A picture from the cache is the file's, to the bit, or the file is read."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builders import make_batches
from regraft.data import image_store as picture_cache
from regraft.data.image_store import DecodedImages, key_of, write
from regraft.data.preprocessing import build
from regraft.data.readers import use_image_cache
from regraft.data.store import FeatureCache, write_index
from regraft.data.types import Augment, Example, ImageSpec
from regraft.errors import DataError

SPEC = ImageSpec(size=(16, 16), resize=20)
VARIED = Augment(scale=(0.3, 0.8))


@pytest.fixture
def rows(tmp_path):
    """Pictures of different sizes; two have the same content."""
    rng, found = np.random.default_rng(0), []
    for i in range(11):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (24 + i, 30, 3), dtype=np.uint8)).save(path)
        found.append(Example(f"{i:016x}-0", (str(path),), ("x",), path.name))
    (tmp_path / "again.png").write_bytes((tmp_path / "3.png").read_bytes())
    return [*found, Example(f"{3:016x}-1", (str(tmp_path / "again.png"),), ("x",), "again.png")]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(picture_cache, "MIN_SAVED_S", -float("inf"))


def batches(rows, augment=VARIED, **how):
    return make_batches(rows, torch.arange(len(rows)), build(SPEC), 4, augment=augment, seed=3, **how)


def keep(batches, split, rows, cache, passes, memo, note):
    """Let batches read the cached images of a split."""
    batches.reader = use_image_cache(batches.reader, rows, split, cache, passes, memo, note)


def unread(monkeypatch):
    def refuse(self, path):
        raise AssertionError(f"{path} is decoded")

    monkeypatch.setattr("regraft.data.preprocessing.ImagePreprocessor._pixels", refuse)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [None, VARIED, Augment(random_resized_crop=False, randaugment=9)])
def test_no_bit_depends_on_whether_pictures_were_kept(rows, tmp_path, augment, workers, always, monkeypatch):
    live, kept, said = batches(rows, augment), batches(rows, augment, workers=workers), []
    expected = [list(live.epoch(n) if augment else live) for n in (1, 2)]
    cache = FeatureCache(tmp_path / "cache", 10**9)
    keep(kept, "train", rows, cache, 3, {}, said.append)
    assert "11 kept in the cache" in said[0]
    unread(monkeypatch)
    for n in (1, 2):
        given = list(kept.epoch(n) if augment else kept)
        for (ids, x, y), (ids2, x2, y2) in zip(expected[n - 1], given, strict=True):
            assert ids == ids2 and torch.equal(x, x2) and torch.equal(y, y2)


def test_a_second_run_and_a_part_of_the_rows_hit_the_cache(rows, tmp_path, always, monkeypatch):
    cache, said = FeatureCache(tmp_path / "cache", 10**9), []
    keep(batches(rows), "train", rows, cache, 3, {}, said.append)
    some, expected = batches(rows[2:7]), list(batches(rows[2:7]).epoch(1))
    settled = {}
    keep(some, "train", rows, cache, 3, settled, said.append)
    assert "11 from the cache" in said[1]
    unread(monkeypatch)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(some.epoch(1), expected, strict=True))
    keep(batches(rows), "train", rows, cache, 3, settled, said.append)
    assert len(said) == 2  # settled once


def opened(path):
    return FeatureCache(path.parent, 10**9).read(path.name, DecodedImages.of)


def entry(rows, cache):
    p, key = build(SPEC), "a" * 64
    named = {e.id.partition("-")[0]: e for e in rows}
    write(cache, key, ((n, p.decoded(e.inputs, True)) for n, e in named.items()))
    return cache.root / key


def test_a_damaged_picture_is_read_from_its_file(rows, tmp_path):
    path = entry(rows, FeatureCache(tmp_path / "cache", 10**9))
    raw = bytearray((path / "pixels.bin").read_bytes())
    raw[24 * 30 * 3 + 5] ^= 1  # the second picture
    (path / "pixels.bin").write_bytes(raw)
    kept = opened(path)
    assert [kept.get(e.id) is None for e in rows] == [i == 1 for i in range(12)]
    given, expected = batches(rows, images=kept), batches(rows)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(given.epoch(1), expected.epoch(1), strict=True))


@pytest.mark.parametrize("harm", ["short", "gone", "no json", "other rows", "schema", "sides"])
def test_what_is_no_entry_is_not_taken(rows, tmp_path, harm):
    path = entry(rows, FeatureCache(tmp_path / "cache", 10**9))
    pixels, index = path / "pixels.bin", path / "index.json"
    if harm == "short":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif harm == "gone":
        pixels.unlink()
    elif harm == "no json":
        index.write_text("{")
    elif harm == "sides":  # the pixels' checksums would not tell
        values = json.loads(index.read_text())
        values["shapes"] = [[w, h, c] for h, w, c in values["shapes"]]
        index.write_text(json.dumps(values))
    else:
        values = json.loads(index.read_text())
        write_index(path, values | ({"rows": ["a"]} if harm == "other rows" else {"schema": 0}))
    assert opened(path) is None
    entry(rows, FeatureCache(tmp_path / "cache", 10**9))  # takes its place
    assert opened(path).get(rows[3].id) is not None


def test_pictures_that_differ_from_their_files_are_not_taken(rows, tmp_path, always):
    """By one who wrote sums that fit: every picture is that of its neighbour."""
    cache, said = FeatureCache(tmp_path / "cache", 10**9), []
    keep(batches(rows), "train", rows, cache, 3, {}, said.append)
    (path,) = cache.root.iterdir()
    index = json.loads((path / "index.json").read_text())
    write_index(path, index | {"rows": [*index["rows"][1:], index["rows"][0]]})
    again = batches(rows)
    keep(again, "train", rows, cache, 3, {}, said.append)
    assert again.reader.images is None and "differs from the pictures" in said[1]
    assert path.is_dir()  # by another rule: its sums are right


def test_an_entry_that_cannot_be_used_is_said_and_stays(rows, tmp_path, always, monkeypatch):
    cache, said = FeatureCache(tmp_path / "cache", 10**9), []
    keep(batches(rows), "train", rows, cache, 3, {}, said.append)
    (path,) = cache.root.iterdir()
    monkeypatch.setattr("regraft.data.store.is_own", lambda about: False)
    foreign = batches(rows)
    keep(foreign, "train", rows, cache, 3, {}, said.append)
    assert foreign.reader.images is None and "another user's" in said[1] and len(said) == 2
    assert (path / "pixels.bin").exists()


def test_augmenting_leaves_what_is_kept_as_it_is(rows, tmp_path):
    path = entry(rows, FeatureCache(tmp_path / "cache", 10**9))
    before = (path / "pixels.bin").read_bytes()
    list(batches(rows, Augment(randaugment=20), images=opened(path)).epoch(1))
    assert (path / "pixels.bin").read_bytes() == before


def test_another_process_maps_the_pictures_or_goes_on_without(rows, tmp_path):
    path = entry(rows, FeatureCache(tmp_path / "cache", 10**9))
    kept = opened(path)
    sent = pickle.dumps(kept)
    assert len(sent) < 5_000  # not the pixels
    assert torch.equal(pickle.loads(sent).get(rows[3].id), kept.get(rows[3].id))
    (path / "pixels.bin").unlink()  # evicted meanwhile
    assert pickle.loads(sent).get(rows[3].id) is None
    assert kept.get(rows[3].id) is not None  # who has it mapped reads on


@pytest.mark.parametrize(
    ("size", "passes", "there", "says"),
    [
        (10**9, 10, False, "more than the"),
        (10**6, 10, False, ""),
        (10**6, 1, False, "1 passes would decode for 10.0 s and take 10.0 s"),
        (10**6, 1, True, ""),
    ],
)
def test_they_are_kept_where_time_and_disk_say_so(tmp_path, size, passes, there, says, monkeypatch):
    monkeypatch.setattr(picture_cache, "free_memory", lambda: 10**10)
    cache = FeatureCache(tmp_path / "not there yet", 10**8)
    why = picture_cache.no_gain(cache, 10.0, size, passes, 1, there)
    assert says in why and bool(why) == bool(says)


def test_what_is_not_kept_is_said_and_nothing_is_left(rows, tmp_path, always):
    said, cache = [], FeatureCache(tmp_path / "cache", 100)
    few = batches(rows)
    keep(few, "val", rows, cache, 3, {}, said.append)
    assert few.reader.images is None and "0 MB are more than the 0 there are" in said[0]
    with pytest.raises(OSError, match="its limit"):
        entry(rows, cache)
    Path(rows[5].inputs[0]).write_text("x")
    with pytest.raises(DataError, match=r"5\.png"):
        entry(rows, FeatureCache(tmp_path / "cache", 10**9))
    assert list((tmp_path / "cache").iterdir()) == []


def test_rows_whose_ids_are_no_content_hashes_are_left_alone(rows, tmp_path, always):
    named = [Example("mine", rows[0].inputs, ("x",), "")]
    own = batches(named)
    keep(own, "train", named, FeatureCache(tmp_path / "cache", 10**9), 3, {}, pytest.fail)
    assert own.reader.images is None


def test_the_key_is_of_all_that_the_pixels_depend_on():
    def key(whole=True, rows=("a", "b"), **spec):
        from dataclasses import replace

        return key_of(build(replace(SPEC, **spec)), whole, rows)

    assert key() == key(size=(8, 8), interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    assert key(False) == key(False, mean=(0.1, 0.2, 0.3))
    others = [key(), key(False), key(rows=("a",)), key(mean=(0.5,), std=(0.5,))]
    others += [key(False, **s) for s in ({"size": (8, 8)}, {"resize": 30}, {"interpolation": "nearest"})]
    assert len(set(others)) == len(others)


READER = """
import sys, os, re
import numpy as np
from pathlib import Path
from regraft.data.store import FeatureCache
from regraft.data.image_store import DecodedImages, write
import torch

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

root, count = Path(sys.argv[1]), int(sys.argv[2])
write(FeatureCache(root, 10**10), "a" * 64,
      ((f"{i:016x}", torch.full((3, 256, 256), i % 251, dtype=torch.uint8)) for i in range(count)))
kept = FeatureCache(root, 10**10).read("a" * 64, DecodedImages.of)
before = anonymous()
for i in range(count):
    assert int(kept.get(f"{i:016x}-0").sum()) == (i % 251) * 3 * 256 * 256
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts RssAnon")
def test_reading_mapped_pictures_takes_no_memory_of_ones_own(tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path), "400"], capture_output=True, text=True, check=True
    )
    assert float(said.stdout) < 20  # MB, of 79 that were read


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_cached_in_a_pass_are_used_in_the_next(rows, tmp_path, workers):
    kept = opened(entry(rows, FeatureCache(tmp_path / "cache", 10**9)))
    given = batches(rows, workers=workers)
    before = list(given.epoch(1))
    given.reader = replace(given.reader, images=kept)
    for row in rows:
        Path(row.inputs[0]).unlink()
    for (ids, inputs, _), (others, expected, _) in zip(given.epoch(1), before, strict=True):
        assert ids == others and torch.equal(inputs, expected)
