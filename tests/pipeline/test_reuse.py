"""An entry of the cache is held against rows that nobody knows beforehand."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builders import FLOATS, make_batches
from regraft.data.store import write_index
from regraft.io.hashing import file_digest
from regraft.pipeline import feature_reuse as reuse
from regraft.plan.schema import RunPlan

KEY = "a" * 64


class Doubled:
    """Blocks whose outputs are twice their inputs."""

    def __init__(self, root) -> None:
        plan = SimpleNamespace(run=RunPlan(cache=str(root)))
        self.p = SimpleNamespace(plan=plan, kept={}, source=SimpleNamespace(preprocess=None))

    def __call__(self, inputs):
        return inputs * 2

    def key(self, batches, view):
        return KEY


@pytest.fixture
def batches(number_rows):
    rows, targets = number_rows(23)
    return make_batches(rows, targets, FLOATS, 4)


def entries(root, batches):
    """→ (entries or None, what was said)"""
    said = []
    found = reuse.entries(Doubled(root), batches, [0], passes=None, what="rows", say=said.append)
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
    below, said = Doubled(tmp_path), []
    monkeypatch.setattr(reuse, "cache_in", lambda root, *more: reuse.FeatureCache(tmp_path, 10**9))
    for _ in range(2):
        assert reuse.entries(below, batches, [0], passes=None, what="rows", say=said.append) is None
    assert len(said) == 1 and "another user's" in said[0]
    assert (tmp_path / KEY / "output.bin").exists()


def test_an_entry_that_lacks_a_row_is_not_used(tmp_path, batches):
    entries(tmp_path, batches)
    index = json.loads((tmp_path / KEY / "index.json").read_text())
    write_index(tmp_path / KEY, index | {"ids": ["other", *index["ids"][1:]]})
    for _ in range(4):  # whichever batch is drawn
        found, said = entries(tmp_path, batches)
        assert found is None and "differs from it" in said[0]
