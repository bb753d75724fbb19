"""An entry of the cache is held against rows that nobody knows beforehand."""

from __future__ import annotations

import json
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builders import make_batches
from regraft.data.preprocessing import build
from regraft.data.store import write_index
from regraft.data.types import CallableSpec
from regraft.io.hashing import file_digest
from regraft.io.log import lines_to
from regraft.pipeline import feature_cache as reuse
from regraft.pipeline.target_data import Memo
from regraft.plan.schema import RunPlan

KEY = "a" * 64


class Doubled:
    """Blocks whose outputs are twice their inputs."""

    def __call__(self, inputs):
        return inputs * 2

    def key(self, batches, view):
        return KEY


def store_in(root):
    cache = reuse.cache_of(RunPlan(cache=str(root)), SimpleNamespace(preprocess=None))
    return reuse.CachedOutputs(cache, Memo(), logging.INFO)


@pytest.fixture
def batches(number_rows):
    def floats(inputs):
        return torch.tensor([float(v) for v in inputs[0].split()])

    rows, targets = number_rows(23)
    return make_batches(rows, targets, build(CallableSpec(floats)), 4)


def entries(root, batches, store=None):
    """→ (entries or None, what was said)"""
    said = []
    with lines_to(said.append):
        found = (store or store_in(root)).entries(Doubled(), batches, [0], passes=None, what="rows")
    return found, said


def poison(folder, first):
    """Change all rows from one on, and write sums that fit."""
    values = np.fromfile(folder / "output.bin", dtype=np.float32)
    values[4 * first :] += 1
    values.tofile(folder / "output.bin")
    index = json.loads((folder / "index.json").read_text())
    index["tensors"]["output"]["sha256"] = file_digest(folder / "output.bin")
    write_index(folder, index)


def test_rows_after_the_first_batch_are_checked_too(tmp_path, batches, monkeypatch):
    assert entries(tmp_path, batches)[0] is not None
    poison(tmp_path / KEY, batches.order.batch_size)
    drawn = []
    monkeypatch.setattr(reuse.PICK, "randrange", lambda n: drawn.append(n) or n - 1)
    found, said = entries(tmp_path, batches)
    assert found is None and "differs from it" in said[0]
    assert drawn == [1, batches.count]  # of the views, and of the batches


def test_the_check_draws_from_no_seed_of_the_run(tmp_path, batches):
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    for _ in range(2):
        assert entries(tmp_path, batches)[0] is not None
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]


def test_an_entry_that_cannot_be_used_is_said_once_and_stays(tmp_path, batches, monkeypatch):
    entries(tmp_path, batches)
    monkeypatch.setattr("regraft.data.store.is_own", lambda about: False)
    store = reuse.CachedOutputs(reuse.FeatureCache(tmp_path, 10**9), Memo(), logging.INFO)
    lines = []
    for _ in range(2):
        found, said = entries(tmp_path, batches, store)
        lines += said
        assert found is None
    assert len(lines) == 1 and "another user's" in lines[0]
    assert (tmp_path / KEY / "output.bin").exists()


def test_an_entry_that_lacks_a_row_is_not_used(tmp_path, batches):
    entries(tmp_path, batches)
    index = json.loads((tmp_path / KEY / "index.json").read_text())
    write_index(tmp_path / KEY, index | {"ids": ["other", *index["ids"][1:]]})
    for _ in range(4):  # whichever batch is drawn
        found, said = entries(tmp_path, batches)
        assert found is None and "differs from it" in said[0]
