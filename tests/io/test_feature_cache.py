"""Entries come back as they were written, or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regraft.data.store import SUM, FeatureCache, NotStorableError, cache_in, place_of, write_index
from regraft.model.types import Block
from regraft.pipeline.feature_cache import key_of
from regraft.runs.ledger import ledger_path

BIG = 10**9
A, B, C = "a" * 64, "b" * 64, "c" * 64  # keys


def rows(count: int, seed: int = 0) -> list[tuple[list[str], torch.Tensor]]:
    values = torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(seed))
    return [([f"r{i}" for i in range(k, min(k + 4, count))], values[k : k + 4]) for k in range(0, count, 4)]


def texts() -> list[tuple[list[str], dict[str, torch.Tensor]]]:
    """Two batches with padding of their own; what stands in the padding is no part of a row."""
    hidden = torch.arange(1.0, 25.0).view(2, 6, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    other = torch.full((1, 3, 2), -1.0)
    return [
        (["long", "short"], {"hidden": hidden, "attention_mask": mask}),
        (["last"], {"hidden": other, "attention_mask": torch.ones(1, 3, dtype=torch.int64)}),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_row_comes_back_by_its_id(tmp_path, dtype):
    values = (torch.randn(7, 3, 2) * 10).to(dtype)
    entry = FeatureCache(tmp_path, BIG).write(A, [(list("abcdefg"), values)])
    found = entry.batch(["e", "a", "e"])
    assert isinstance(found, torch.Tensor) and found.dtype == dtype
    assert torch.equal(found, values[[4, 0, 4]])
    found.zero_()  # a copy: the file is not written to
    again = FeatureCache(tmp_path, BIG).open(A)
    assert again is not None and torch.equal(again.batch(["b"]), values[[1]])


def test_all_rows_in_order_are_mapped_and_others_are_copied(tmp_path):
    values = torch.randn(7, 3, 2)
    entry = FeatureCache(tmp_path, BIG).write(A, [(list("abcdefg"), values)])
    mapped, copied = entry.rows(list("abcdefg")), entry.rows(list("bacdefg"))
    assert torch.equal(mapped, values) and torch.equal(copied, values[[1, 0, 2, 3, 4, 5, 6]])
    assert mapped.data_ptr() == entry.arrays["output"].ctypes.data
    mapped.zero_()  # which nobody should do
    again = FeatureCache(tmp_path, BIG).open(A)
    assert again is not None and torch.equal(again.batch(["b"]), values[[1]])


def test_texts_lose_their_padding_and_get_that_of_their_batch(tmp_path):
    written = texts()
    entry = FeatureCache(tmp_path, BIG).write("t", written)
    found = entry.batch(["last", "short"])
    assert isinstance(found, dict)
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert found["attention_mask"].dtype == torch.int64
    hidden = written[0][1]["hidden"]
    assert torch.equal(found["hidden"][1, :2], hidden[1, :2])
    assert found["hidden"][1, 2].tolist() == [0, 0] and (found["hidden"][0] == -1).all()
    assert entry.batch(["long"])["hidden"].shape == (1, 6, 2)


def test_a_missing_entry_is_none(tmp_path):
    assert FeatureCache(tmp_path / "nowhere", BIG).open(A) is None


@pytest.mark.parametrize("harm", ["bit", "short", "index", "gone", "no json", "outside", "names", "no sum"])
def test_a_damaged_entry_is_removed_and_written_again(tmp_path, harm):
    cache = FeatureCache(tmp_path / "cache", BIG)
    cache.write(A, rows(9))
    data, index = cache.root / A / "output.bin", cache.root / A / "index.json"
    raw = bytearray(data.read_bytes())
    if harm == "bit":
        raw[17] ^= 4
        data.write_bytes(bytes(raw))
    elif harm == "short":
        data.write_bytes(bytes(raw[:-1]))
    elif harm == "index":
        write_index(index.parent, {"ids": ["r0"]})
    elif harm == "no json":
        index.write_text("{")
    elif harm == "outside":  # by somebody who knows how to
        (tmp_path / "other.bin").write_bytes(raw)
        write_index(index.parent, json.loads(index.read_text().replace('"output"', '"../../other"')))
    elif harm == "names":  # nothing but the sum could tell
        index.write_text(index.read_text().replace('"r0"', '"x"').replace('"r1"', '"r0"').replace('"x"', '"r1"'))
    elif harm == "no sum":
        (index.parent / SUM).unlink()
    else:
        data.unlink()
    assert cache.open(A) is None
    assert torch.equal(cache.write(A, rows(9)).batch(["r8"]), rows(9)[2][1])
    assert cache.open(A) is not None


@pytest.mark.fault(91)
def test_a_second_writer_takes_the_first_ones_entry(tmp_path):
    cache = FeatureCache(tmp_path, BIG)

    def slower():
        first, *others = rows(9)
        yield first
        FeatureCache(tmp_path, BIG).write(A, rows(9))  # meanwhile, somebody else
        yield from others

    entry = cache.write(A, slower())
    assert torch.equal(entry.batch(["r0", "r8"]), torch.cat([rows(9)[0][1][:1], rows(9)[2][1]]))
    assert [p.name for p in tmp_path.iterdir()] == [A]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield rows(9)[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        FeatureCache(tmp_path, BIG).write(A, broken())
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(91)
def test_what_a_killed_writer_left_goes_and_a_living_ones_stays(tmp_path):
    code = (
        "import os, signal, torch; from pathlib import Path\n"
        "from regraft.data.store import FeatureCache\n"
        "def rows():\n"
        "    yield ['a'], torch.ones(1, 2)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"FeatureCache(Path({str(tmp_path)!r}), 10**9).write('k', rows())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    others = [f"tmp-{socket.gethostname()}-x-y", f"tmp-{socket.gethostname()}-1-999999-x"]
    for name in others:  # not ours
        (tmp_path / name).mkdir()
    cache = FeatureCache(tmp_path, BIG)
    assert cache.open("k") is None

    def slower():
        yield rows(4)[0]
        cache.write(B, rows(4))  # another one, which sweeps: this one lives

    cache.write(C, slower())
    assert {p.name for p in tmp_path.iterdir()} == {B, C, *others} and not left.exists()


def test_an_entry_of_another_user_is_used_if_the_plan_says_so(tmp_path, monkeypatch):
    FeatureCache(tmp_path, BIG).write(A, rows(9))
    monkeypatch.setattr("regraft.data.store.is_own", lambda about: False)
    own = FeatureCache(tmp_path, BIG)
    with pytest.raises(OSError, match=r"another user's .run\.cache_users = .all. would use it"):
        own.open(A)
    assert own.clear() == 0 and own.entries()  # and it is not removed
    assert FeatureCache(tmp_path, BIG, users="all").open(A) is not None
    assert cache_in(str(tmp_path)).root == tmp_path / f"uid-{os.geteuid()}"
    assert cache_in(str(tmp_path), "all").root == tmp_path


def test_others_may_read_by_the_umask_and_write_nothing(tmp_path):
    for mask, folder, file in ((0o002, 0o755, 0o644), (0o027, 0o750, 0o640), (0o077, 0o700, 0o600)):
        before = os.umask(mask)
        try:
            FeatureCache(tmp_path, BIG).write(A, rows(4))
        finally:
            os.umask(before)
        modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / A).iterdir()}
        assert modes == {file} and stat.S_IMODE((tmp_path / A).stat().st_mode) == folder


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.EIO])
def test_an_entry_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch, number):
    cache = FeatureCache(tmp_path, BIG)
    cache.write(A, rows(9))
    real = Path.open

    def failing(self, *args, **how):
        if self.suffix == ".bin":
            raise OSError(number, os.strerror(number))
        return real(self, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            cache.open(A)
    assert cache.open(A) is not None


def test_an_entry_under_another_ones_key_is_not_taken(tmp_path):
    cache = FeatureCache(tmp_path, BIG)
    cache.write(A, rows(9))
    (tmp_path / A).rename(tmp_path / B)
    assert cache.open(B) is None


def test_an_entry_with_a_pipe_in_it_is_not_waited_for(tmp_path):
    cache = FeatureCache(tmp_path, BIG, users="all")
    cache.write(A, rows(9))
    (tmp_path / A / "output.bin").unlink()
    os.mkfifo(tmp_path / A / "output.bin")
    with pytest.raises(OSError, match="no regular file"):
        cache.open(A)


def test_the_longest_unused_goes_first(tmp_path):
    size = sum(len(v) for _, v in rows(8)) * 24
    cache = FeatureCache(tmp_path, 0)
    cache.write(A, rows(8))
    each = cache.entries()[0][1]
    assert each > size
    cache = FeatureCache(tmp_path, 2 * each)
    cache.write(B, rows(8, 1))
    for name, when in ((A, 1000), (B, 2000)):
        os.utime(tmp_path / name, (when, when))
    held = cache.open(A)  # used just now, so b is the oldest
    cache.write(C, rows(8, 2))
    assert {p.name for p, _, _ in cache.entries()} == {A, C}
    (tmp_path / "backup").mkdir()  # somebody's own: its name begins like a key
    (tmp_path / "backup" / "index.json").write_text("{}")
    assert cache.clear() == 2
    assert [q.name for q in tmp_path.iterdir()] == ["backup"]
    assert held is not None and held.batch(["r3"]).shape == (1, 3, 2)  # who has it goes on reading
    assert not cache.entries()


@pytest.mark.parametrize(
    "output",
    [
        {"hidden": torch.ones(2, 3, 1), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])},
        {"hidden": torch.ones(2, 4, 1), "attention_mask": torch.ones(2, 3)},
        torch.ones(3, 1),
        torch.tensor(1.0),
        (torch.ones(2), torch.ones(2)),
        {"../x": torch.ones(2, 1)},
    ],
    ids=["padding first", "other length", "rows", "no rows", "a tuple", "a path"],
)
def test_outputs_without_rows_are_refused(tmp_path, output):
    with pytest.raises(NotStorableError):
        FeatureCache(tmp_path, BIG).write(A, [(["x", "y"], output)])
    assert not list(tmp_path.iterdir())


def test_rows_of_another_shape_are_refused(tmp_path):
    with pytest.raises(NotStorableError, match="differ in shape"):
        FeatureCache(tmp_path, BIG).write(A, [(["x"], torch.ones(1, 2)), (["y"], torch.ones(1, 3))])


def test_a_key_holds_weights_below_the_cut_and_the_rest(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    low = Block("low", ("0.weight", "0.bias", "1.running_mean"), ("0", "1"))
    key = key_of(net, [low], {"layout": "contiguous"})
    assert key_of(net, [low], {"layout": "channels_last"}) != key
    with torch.no_grad():
        net[2].weight += 1  # above the cut
    assert key_of(net, [low], {"layout": "contiguous"}) == key
    net[1].running_mean += 1
    assert key_of(net, [low], {"layout": "contiguous"}) != key


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    assert place_of("shared") == tmp_path / "features"
    monkeypatch.delenv("REGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("REGRAFT_STATE", raising=False)
    assert place_of("shared") == tmp_path / "regraft" / "features"
    assert ledger_path() == tmp_path / "state" / "regraft" / "test-ledger.jsonl"
    assert place_of("/else/where").as_posix() == "/else/where"
