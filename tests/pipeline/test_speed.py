"""Layout and precision: chosen by what was measured, once; and precision reaches the steps alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from builders import CPU, FLOATS, Recorder, class_task, fit, make_batches, make_settings, make_spec, spell_rows
from regraft.compute.device import Compute
from regraft.data.types import CallableSpec, Example, ImageSpec
from regraft.model.forward import outputs
from regraft.model.grafting import graft
from regraft.model.types import Source
from regraft.pipeline import autotune as speed
from regraft.plan.schema import RunPlan

LAST, PLAIN = "channels_last", "contiguous"


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)))


@pytest.fixture
def source():
    torch.manual_seed(0)
    made = Source.from_module(
        Convolutional(),
        head="fc",
        preprocess=CallableSpec(lambda row: torch.ones(3, 8, 8)),
        example=torch.zeros(2, 3, 8, 8),
        name="convolutional",
    )
    made.preprocess = ImageSpec((8, 8), 8)
    return made


class Preprocessed:
    """Rows that are there already."""

    def one(self, inputs, augment=None, key=(0, 0, "")):
        return torch.full((3, 8, 8), float(inputs[0]))

    def collate(self, samples):
        return torch.stack(samples)


ROWS = [Example(f"{i:03d}-0", (str(i),), ("a",), f"row {i}") for i in range(600)]


def settle(source, run=RunPlan(), rows=ROWS, passes=4, trains=True):  # noqa: B008
    return speed.settle(run, source, Preprocessed(), rows, CPU.device, passes=passes, trains=trains)


@pytest.fixture
def clock(monkeypatch):
    """What a measurement gives, instead of one; and how often it was asked for."""
    asked = []

    def give(infer, train):
        def timed(source, inputs, device, ways, rows, training):
            asked.append(training)
            times = train if training else infer
            return {way: times.get(way) for way in ways}

        monkeypatch.setattr(speed, "timed", timed)
        return asked

    return give


def test_the_faster_ways_are_taken_with_their_reason(source, clock):
    clock(
        infer={(PLAIN, "float32"): 4e-3, (LAST, "float32"): 2e-3, (LAST, "bfloat16"): 1e-3},
        train={(LAST, "float32"): 10e-3, (LAST, "bfloat16"): 9e-3},
    )
    run, why = settle(source)
    assert (run.layout, run.feature_precision, run.precision) == (LAST, "bfloat16", "float32")
    assert why["run.layout"] == "auto: measured 4 ms a row contiguous, 2 channels-last"
    assert "2.0 ms a row in float32, 1.0 in bfloat16" in why["run.feature_precision"]
    assert "under 15 % faster" in why["run.precision"]


@pytest.mark.parametrize(("half", "chosen"), [(0.84, "bfloat16"), (0.86, "float32"), (None, "float32")])
def test_bfloat16_is_taken_from_15_percent_on(half, chosen):
    times = {(LAST, "float32"): 1.0} | ({(LAST, "bfloat16"): half} if half else {})
    assert speed.best_precision(times, LAST, "a step")[0] == chosen


def test_a_measurement_is_taken_once_and_none_for_a_settled_plan(source, clock):
    asked = clock(
        infer={(PLAIN, "float32"): 2e-3, (LAST, "float32"): 4e-3, (PLAIN, "bfloat16"): 1e-3, (LAST, "bfloat16"): 1e-3},
        train={(PLAIN, "float32"): 5e-3, (PLAIN, "bfloat16"): 1e-3},
    )
    first, _ = settle(source)
    assert asked == [False, True]
    again, _ = settle(source)
    assert asked == [False, True] and again == first
    assert settle(source, first) == (first, {})
    off, _ = settle(source, RunPlan(cache="off"))  # nothing is kept, so it is measured
    assert asked == [False, True, False, True] and off.precision == first.precision


def test_few_rows_are_not_measured(source, clock):
    asked = clock({}, {})
    run, why = settle(source, rows=ROWS[:100])
    assert (run.layout, run.precision, run.feature_precision) == (LAST, "float32", "float32")
    assert "not measured" in why["run.precision"] and not asked


@pytest.mark.parametrize(("asked_for", "taken"), [("auto", "bfloat16"), ("float32", "float32")])
def test_a_frozen_backbones_steps_take_its_features_precision(source, clock, asked_for, taken):
    asked = clock({(PLAIN, "float32"): 2e-3, (LAST, "float32"): 1e-3, (LAST, "bfloat16"): 5e-4}, {})
    run, why = settle(source, RunPlan(feature_precision=asked_for), trains=False)
    assert asked == [False] and run.precision == run.feature_precision == taken
    assert why["run.precision"] == "auto: as the features: the backbone does not train"


def test_what_is_asked_for_stays(source, clock):
    clock({(PLAIN, "float32"): 2e-3, (PLAIN, "bfloat16"): 1e-3}, {(PLAIN, "float32"): 2e-3, (PLAIN, "bfloat16"): 1e-3})
    asked_for = RunPlan(layout=PLAIN, precision="float32")
    run, why = settle(source, asked_for)
    assert (run.layout, run.precision, run.feature_precision) == (PLAIN, "float32", "bfloat16")
    assert why.keys() == {"run.feature_precision"}


def test_every_way_is_timed_and_the_source_left_as_it_was(source):
    before = {n: t.clone() for n, t in source.backbone.state_dict().items()}
    inputs = torch.randn(4, 3, 8, 8)
    for train in (False, True):
        ways = [(PLAIN, "float32"), (LAST, "float32"), (LAST, "bfloat16")]
        found = speed.timed(source, inputs, CPU.device, ways, 4, train)
        assert found.keys() == set(ways) and all(s is None or s > 0 for s in found.values())
        assert found[PLAIN, "float32"] and found[LAST, "float32"]
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in source.backbone.parameters())


# ---------------------------------------------------------------- precision in a fit


class Watched(nn.Linear):
    """Notes the type of what it gives, and whether a gradient will be asked for."""

    seen: list  # of (dtype, training step)

    def forward(self, x):
        y = super().forward(x)
        self.seen.append((y.dtype, torch.is_grad_enabled()))
        return y


def net_source():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.low, net.high = Watched(5, 32), nn.Sequential(nn.Tanh(), nn.Linear(32, 8), nn.Tanh())
    net.low.seen = []
    net.fc = nn.Linear(8, 4)
    return Source.from_module(net, head="fc", preprocess=FLOATS, example=torch.randn(4, 5), name="net")


def rows(n):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    targets = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return make_batches(spell_rows(x, ["a"] * n, f"{n:03d}"), targets, FLOATS, 16)


def fit_net(compute=CPU):
    target = graft(net_source(), 3, seed=0)
    target.model.get_submodule("backbone").low.seen.clear()  # of the source's example
    recorder = Recorder()
    chosen = make_settings([b.name for b in target.blocks], 4, warmup=0.0)
    task = class_task("a", "b", "c")
    fit(target, rows(160), task, chosen, val=rows(40), compute=compute, monitor=recorder)
    return target, recorder.epochs


def test_steps_run_in_bfloat16_and_what_is_judged_in_float32():
    full, exact = fit_net()
    half, history = fit_net(Compute(precision="bfloat16"))
    low = half.model.get_submodule("backbone").low
    assert (torch.bfloat16, True) in low.seen and (torch.float32, False) in low.seen
    assert (torch.float32, True) not in low.seen and (torch.bfloat16, False) not in low.seen
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    moved = [
        torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a - c)
        for (n, a), b, c in zip(
            full.model.named_parameters(),
            half.model.parameters(),
            graft(net_source(), 3, seed=0).model.parameters(),
            strict=True,
        )
        if "head" not in n
    ]
    assert max(moved) < 0.3, "the two go the same way"
    assert history[-1].terms["task"] == pytest.approx(exact[-1].terms["task"], abs=0.02)
    assert history[-1].terms != exact[-1].terms


def test_features_may_be_computed_in_bfloat16():
    source = net_source()
    exact = outputs(source.backbone, rows(40), CPU).values
    rough = outputs(source.backbone, rows(40), CPU, precision="bfloat16").values
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.02)


def test_a_penalty_is_zero_at_the_source_in_bfloat16_too():
    from regraft.model.trainable import set_trainable
    from regraft.regularizers.lwf import LwF
    from regraft.training.objective import Objective
    from regraft.training.optimizers import build as build_optimizer
    from regraft.training.optimizers import groups

    source = replace(net_source(), labels=("p", "q", "r", "s"))
    target = graft(source, 3, seed=0)
    names = [b.name for b in target.blocks]
    set_trainable(target, names, "frozen")
    chosen = make_settings(names, 1, 0.0, optimizer="SGD")
    optimizer = build_optimizer("SGD", {}, groups(target, names, chosen.rates, 0.0))
    params = {n: p for n, p in target.model.named_parameters() if p.requires_grad}
    penalties = {"lwf": LwF().prepare(target, None, None)}
    spec = make_spec(chosen, class_task("a", "b", "c"), penalties=penalties)
    objective = Objective(target, spec, Compute(precision="bfloat16"))
    terms = objective.step([next(rows(32).epoch(1))], params, optimizer, 1, 0)
    assert terms["task"] > 0.5 and abs(terms["lwf"]) < 1e-5
