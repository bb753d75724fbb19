"""A fit that was stopped anywhere and read back from disk ends bit for bit where one left alone does."""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import builders
from builders import NO_AUGMENT, CheckpointStub, Recorder, class_task, make_batches
from regraft.freezing.everything import Everything
from regraft.freezing.gradual import Gradual
from regraft.freezing.lora import LoRA
from regraft.model.grafting import graft
from regraft.pipeline.target_data import Stream
from regraft.regularizers.bss import BSS
from regraft.regularizers.delta import Delta
from regraft.regularizers.l1 import L1
from regraft.regularizers.l2_sp import L2SP
from regraft.regularizers.lwf import LwF
from regraft.regularizers.replay import Replay
from regraft.training.checkpoints import read, verify, write
from regraft.training.schedules import block_rates
from regraft.training.settings import Settings

TASK = class_task("0", "1", "2")
SETTINGS = Settings(epochs=4, rates=block_rates(["one", "two", "head"], lr=0.02, head_lr=0.05), augment=NO_AUGMENT)
SGD = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}}
CASES = {
    "AdamW": {},
    "SGD with momentum": SGD,
    "NAdam": {"optimizer": "NAdam"},
    "Adagrad": {"optimizer": "Adagrad"},
    "Adafactor": {"optimizer": "Adafactor"},
    "accumulation": {"accumulate": 2},
    "accumulation that does not divide": {"accumulate": 4},
    "average": {"average": 0.9},
    "sharpness": {"sharpness": 0.1},
    "batch norm that trains": {"batch_norm": "train"},
    "patience": {"patience": 1, "epochs": 6},
    "linear without warm-up": {"schedule": "linear", "warmup": 0.0},
    "all of it": {**SGD, "accumulate": 2, "average": 0.8, "sharpness": 0.05, "batch_norm": "train"},
}


class Stopped(Exception):  # noqa: N818
    pass


class SourceRows:
    """Rows of the source task for replay."""

    def __init__(self, rows, spec):
        self.rows, self.spec, self.task = rows, spec, TASK

    def draws(self):
        return Stream(make_batches(*self.rows, self.spec, 5, seed=3))


def fit(source, rows, val, chosen, *, freezing=None, penalties=(), saved=None, on_save=None):
    """→ (what the loop returned, the weights, the lines it logged)"""
    recorder = Recorder()
    target = graft(source, 3)
    own = SourceRows(rows, source.preprocess)
    made = {type(r).__name__: r.prepare(target, own, None) for r in penalties}
    strategy = freezing or Everything()

    def go(target):
        return builders.fit(
            target,
            make_batches(*rows, source.preprocess, 6),
            TASK,
            chosen,
            val=make_batches(*val, source.preprocess, 8),
            monitor=recorder,
            checkpoints=CheckpointStub(saved, on_save or (lambda at, tensors: None)),
            freezing=strategy,
            penalties=made,
        )

    if isinstance(strategy, LoRA):
        with strategy.adapted(target, 0) as other:
            done = go(other)
    else:
        done = go(target)
    return done, target.model.state_dict(), [asdict(line) for line in recorder.epochs]


def stop_after(step, place, epoch_end=False):
    """Save to ``place`` at a step, or at the first epoch's end from there on, and stop."""

    def keep(at, tensors):
        if at.step >= step and (at.batches == 0) == epoch_end:
            write(place, {"at": asdict(at)}, tensors())
            raise Stopped

    return keep


def same(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def resumed_is_the_same(source, rows, val, chosen, step, place, epoch_end=False, **how):
    alone, weights, lines = fit(source(), rows, val, chosen, **how)
    before = []
    with pytest.raises(Stopped):
        keep = stop_after(step, place, epoch_end)
        target_source = source()
        fit(target_source, rows, val, chosen, on_save=lambda at, t: (before.append(at.epoch), keep(at, t)), **how)
    verify(place)
    torch.rand(step)  # the generator is wherever it is
    torch.manual_seed(999)
    again, others, more = fit(source(), rows, val, chosen, saved=read(place), **how)
    assert again == alone
    same(weights, others)
    assert lines[len(lines) - len(more) :] == more  # and no line of history is written twice
    assert lines != more


@pytest.mark.fault(13)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("epoch_end", [False, True], ids=["mid-epoch", "epoch's end"])
def test_every_setting(numbers_source, number_rows, tmp_path, name, epoch_end):
    chosen = replace(SETTINGS, **CASES[name])
    rows, val = number_rows(40), number_rows(20, seed=1)
    for step in (1, 4):
        resumed_is_the_same(lambda: numbers_source(0.4), rows, val, chosen, step, tmp_path / f"c{step}", epoch_end)


@pytest.mark.fault(13)
@pytest.mark.parametrize("step", [1, 6, 7, 8, 13, 14, 15, 20])
def test_gradual_unfreezing_around_each_thaw(numbers_source, number_rows, tmp_path, step):
    chosen = replace(SETTINGS, warmup=0.3, average=0.9, optimizer="Adam")
    rows, val = number_rows(40), number_rows(20, seed=1)
    for end in (False, True):
        resumed_is_the_same(
            lambda: numbers_source(0.4), rows, val, chosen, step, tmp_path / f"c{end}", end, freezing=Gradual()
        )


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "penalties",
    [[Replay()], [LwF()], [Delta(beta=0.0)], [L2SP(), BSS()], [Replay(), LwF(), L2SP()]],
    ids=lambda p: "+".join(type(r).__name__ for r in p),
)
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_penalties_go_on_where_their_draws_were(numbers_source, number_rows, tmp_path, penalties, rho):
    chosen = replace(SETTINGS, sharpness=rho, accumulate=2)
    rows, val = number_rows(40), number_rows(20, seed=1)
    resumed_is_the_same(lambda: numbers_source(0.4), rows, val, chosen, 5, tmp_path / "c", penalties=penalties)


@pytest.mark.fault(13)
def test_proximal_steps_and_low_rank_changes(numbers_source, number_rows, tmp_path):
    rows, val = number_rows(40), number_rows(20, seed=1)
    sgd = replace(SETTINGS, **SGD)
    resumed_is_the_same(
        lambda: numbers_source(0.4), rows, val, sgd, 5, tmp_path / "a", penalties=[L1(strength=0.01, proximal=True)]
    )
    resumed_is_the_same(
        lambda: numbers_source(0.4), rows, val, SETTINGS, 5, tmp_path / "b", freezing=LoRA(rank=2, dropout=0.3)
    )


@pytest.mark.fault(13)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(1, 27), case=st.sampled_from(sorted(CASES)), end=st.booleans())
def test_any_step_of_any_setting(numbers_source, number_rows, tmp_path_factory, step, case, end):
    chosen = replace(SETTINGS, **CASES[case])
    per_epoch = -(-7 // chosen.accumulate)
    step = min(step, per_epoch * 2)
    resumed_is_the_same(
        lambda: numbers_source(0.4),
        number_rows(40),
        number_rows(20, seed=1),
        chosen,
        step,
        tmp_path_factory.mktemp("c") / "c",
        end,
    )


def test_a_stream_that_is_set_goes_on_as_if_it_had_been_drawn(numbers_source, number_rows):
    def stream():
        return Stream(make_batches(*number_rows(23), numbers_source().preprocess, 5, seed=1))

    one = stream()
    drawn = [next(one)[0] for _ in range(17)]
    for start in range(17):
        other = stream()
        other.drawn = start
        assert [next(other)[0] for _ in range(17 - start)] == drawn[start:]
        assert other.drawn == 17


@pytest.mark.parametrize("n", [1, 7, 24, 25])
def test_an_epoch_may_begin_in_the_middle(numbers_source, number_rows, n):
    batches = make_batches(*number_rows(n), numbers_source().preprocess, 4, seed=2)
    whole = [ids for ids, _, _ in batches.epoch(3)]
    assert len(whole) == batches.count
    for skip in range(len(whole) + 1):
        assert [ids for ids, _, _ in batches.epoch(3, skip)] == whole[skip:]


def test_an_optimisers_state_keeps_the_layout_of_its_parameter():
    from regraft.training.state import match_layout

    p = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
    value = torch.randn(4, 3, 5, 5)
    got = match_layout(value, p)
    assert got.stride() == p.stride() and torch.equal(got, value)


def test_a_state_of_another_model_is_refused(numbers_source, number_rows, tmp_path):
    from regraft.errors import UsageError

    rows, val = number_rows(40), number_rows(20, seed=1)
    with pytest.raises(Stopped):
        fit(numbers_source(), rows, val, SETTINGS, on_save=stop_after(2, tmp_path / "c"))
    saved = read(tmp_path / "c")
    saved.tensors["model/head.weight"] = torch.zeros(7, 6)
    with pytest.raises(UsageError, match="another model"):
        fit(numbers_source(), rows, val, SETTINGS, saved=saved)


def test_keep_is_told_of_every_step_and_every_epoch(numbers_source, number_rows):
    told = []
    rows, val = number_rows(40), number_rows(20, seed=1)
    fit(numbers_source(), rows, val, SETTINGS, on_save=lambda at, t: told.append(copy.deepcopy(at)))
    assert [t.step for t in told if t.batches] == list(range(1, 29))
    assert [t.epoch for t in told if not t.batches] == [2, 3, 4, 5]
    assert all(a.step <= b.step for a, b in itertools.pairwise(told))
    assert np.isfinite([t.sums["task"] for t in told if t.batches]).all()
