"""Two processes fit as one does: same order, losses, figures and, to rounding, weights."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regraft.compute import distributed as processes
from regraft.errors import DivergedError, RankError, UsageError
from regraft.pipeline.arms import map_over_ranks
from regraft.pipeline.target_data import Memo

WORKER = Path(__file__).parents[1] / "fit_worker.py"


def fit(folder: Path, count: int, check: bool = True, **options):
    """The worker in ``count`` processes → (record, weights), or the exit codes and messages."""
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps({"out": str(folder), **options}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if count > 1:
        env |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(WORKER), str(folder / "options.json")]
    started = [
        subprocess.Popen(
            command,
            env=env | ({"RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(count)
    ]
    ends = [(p.communicate(timeout=120)[1], p.returncode) for p in started]
    if not check:
        return ends
    assert [code for _, code in ends] == [0] * count, ends
    return json.loads((folder / "record.json").read_text()), load_file(folder / "model.safetensors")


def fits(folder: Path, count: int, cases, **options):
    """The worker's fits of all cases, one after another → [(record, weights)]."""
    folders = [folder / f"case-{i}" for i in range(len(cases))]
    each = [{"out": str(f), **case, **options} for f, case in zip(folders, cases, strict=True)]
    for place in folders:
        place.mkdir(parents=True)
    run = {"processes": count} if count > 1 else {}
    ends = fit(folder / "all", count, check=False, cases=each, **run)
    assert [code for _, code in ends] == [0] * count, ends
    return [(json.loads((f / "record.json").read_text()), load_file(f / "model.safetensors")) for f in folders]


CASES = [
    {"n": 37, "batch_size": 8},
    {"n": 33, "batch_size": 8, "optimizer": "SGD", "sharpness": 0.05},
    {"n": 33, "batch_size": 8, "accumulate": 2, "average": 0.9},
    {"n": 5, "batch_size": 1},  # the second process has no row in any batch
]


def test_two_processes_fit_as_one(tmp_path):
    alone, both = fits(tmp_path / "one", 1, CASES), fits(tmp_path / "two", 2, CASES)
    for case, (one, weights), (two, others) in zip(CASES, alone, both, strict=True):
        assert (one["size"], two["size"]) == (1, 2)
        (whole,), (first, second) = one["given"], two["given"]
        for batch, a, b in zip(whole, first, second, strict=True):
            assert sorted(batch) == sorted(a + b) and not set(a) & set(b), case  # each row once, no padding
            assert batch[::2] == a and batch[1::2] == b, case  # and in the same order
        same(one, weights, two, others, case)
        torch.testing.assert_close(torch.tensor(two["logits"]), torch.tensor(one["logits"]), rtol=0, atol=1e-5)


DIVIDED = [
    {"n": 37, "batch_size": 8, "accumulate": 2, "clip": 0.05},
    {"n": 33, "batch_size": 8, "optimizer": "SGD", "sharpness": 0.05},
    {"n": 5, "batch_size": 1, "gradual": True},  # the second process has no row in any batch
]


def test_divided_weights_are_those_of_one_process(tmp_path):
    alone = fits(tmp_path / "one", 1, DIVIDED, free=True)
    both = fits(tmp_path / "two", 2, DIVIDED, free=True, shard=True)
    for case, (one, weights), (two, others) in zip(DIVIDED, alone, both, strict=True):
        assert two["weights"] == one["weights"] and two["shares"] <= 0.6 * two["weights"]
        same(one, weights, two, others, case)


def same(one, weights, two, others, case):
    """Weights, losses and figures to rounding, and the best epoch."""
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-5, msg=f"{case}: {name}")
    for (terms, val), (their_terms, their_val) in zip(one["history"], two["history"], strict=True):
        assert their_terms == pytest.approx(terms, abs=1e-5), case
        assert their_val == pytest.approx(val, abs=1e-5), case
    assert one["best"] == two["best"] and one["ids"] == two["ids"], case


def test_weights_are_not_those_of_half_the_rows(tmp_path):  # the test above can fail
    _, weights = fit(tmp_path / "one", 1, n=37, batch_size=8)
    _, others = fit(tmp_path / "other", 1, n=36, batch_size=8)
    assert any((others[n] - w).abs().max() > 1e-3 for n, w in weights.items())


def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    ends = fit(tmp_path / "two", 2, check=False, n=37, batch_size=8, poison=2)
    for message, code in ends:
        assert code == 1 and "DivergedError: the loss is not finite at step" in message


@pytest.mark.fault(88)
def test_other_processes_than_asked_for_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UsageError, match="asks for 4 processes and 1 were started"):
        processes.join(4, cpu=True)


@pytest.mark.fault(88)
@pytest.mark.parametrize("met", [1, 2])
def test_ranks_that_were_started_and_have_not_met_are_refused(monkeypatch, met):
    """Else each would train on all rows as if it were alone, and write what the others write."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: None)
    if met > 1:  # once they met: before, none is asked
        asked = iter([False, True, True])
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: next(asked))
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: met)
    with pytest.raises(UsageError, match=f"3 processes were started and {met} have met"):
        processes.join(None, cpu=True)


def test_a_lost_rank_is_named_in_place_of_what_gloo_says(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    text = "[/third_party/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
    for error in (RuntimeError(text), torch.distributed.DistBackendError("NCCL error")):
        named = pytest.raises(RankError, match=r"another rank has ended.*--resume runs/x")
        with named as caught, processes.naming_a_lost_rank("runs/x"):
            raise error
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match="shapes"), processes.naming_a_lost_rank("runs/x"):
        raise RuntimeError("shapes differ")


def test_one_process_is_told_what_it_says():
    assert processes.all_reduce_sum(1.5, 2) == [1.5, 2]
    assert processes.gather_objects(["a"]) == ["a"] and processes.broadcast("b") == "b"
    assert processes.map_over_ranks(range(3), lambda i: i * i) == [0, 1, 4]
    assert (processes.rank(), processes.world_size(), processes.is_rank0()) == (0, 1, True)


def test_divergence_is_raised_after_all_ranks_have_gathered(monkeypatch):
    """Else the others would wait, or take what is told next for what they wait for."""
    told = []

    def all_tell(items, compute):
        told.extend(compute(item) for item in items)
        return list(told)

    def fitted(item):
        if item == 1:
            raise DivergedError("the loss is not finite")
        return item

    monkeypatch.setattr(processes, "map_over_ranks", all_tell)
    memo = Memo()
    with pytest.raises(DivergedError, match="the loss is not finite"):
        map_over_ranks(memo, [0, 1, 2], fitted)
    assert [value for value, _ in told] == [0, None, 2]
    assert isinstance(pickle.loads(pickle.dumps(told[1][1])), DivergedError)  # it is sent
    told.clear()
    assert map_over_ranks(memo, [0, 2], fitted) == [0, 2]
