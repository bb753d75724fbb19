"""The loop step by step: rates, decay, clipping, accumulation and thaws against a second loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from builders import CPU, FLOATS, NO_AUGMENT, Recorder, class_task, fit, make_batches, make_spec, spell_rows
from regraft.data.batches import Batches
from regraft.data.types import CallableSpec, Example
from regraft.freezing.gradual import Gradual
from regraft.freezing.last_blocks import LastBlocks
from regraft.model.grafting import graft
from regraft.model.trainable import set_trainable
from regraft.model.types import Source, Target
from regraft.regularizers import Penalty
from regraft.regularizers.l2 import L2
from regraft.regularizers.l2_sp import L2SP
from regraft.training.settings import Settings


class Plain(nn.Module):
    """Nothing random, so that a second loop can be written beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.high = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh())
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.high(self.low(x)))
        return logits


def settings(target: Any, **change: Any) -> Settings:
    rates = {"low": 0.003, "high": 0.01, "head": 0.02}
    assert [b.name for b in target.blocks] == list(rates)
    values = {
        "epochs": 3,
        "rates": rates,
        "optimizer": "SGD",
        "schedule": "constant",
        "warmup": 0.0,
        "clip_norm": 0.0,
        "augment": NO_AUGMENT,
    }
    return Settings(**{**values, **change})


def state(target: Any) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in target.model.state_dict().items()}


class Noisy(nn.Module):
    """Batch norm and dropout in two blocks, so that a leak of either shows."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.high = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.high(self.low(x)))
        return logits


@pytest.fixture
def module_source() -> Callable[..., Source]:
    """A source from a module that ends in ``fc`` and takes [B, 5]."""

    def make(net: Callable[[], nn.Module] = Noisy, seed: int = 0) -> Source:
        torch.manual_seed(seed)
        return Source.from_module(net(), head="fc", preprocess=FLOATS, example=torch.randn(4, 5), name="net")

    return make


@pytest.fixture
def net_target(module_source: Callable[..., Source]) -> Target:
    return graft(module_source(), 3, seed=0)


@pytest.fixture
def rows() -> Callable[..., tuple[Batches, torch.Tensor, torch.Tensor, Any]]:
    """(batches, inputs [N, 5], targets [N], task) of three noisy clusters."""

    def make(n: int = 32, batch_size: int = 8, seed: int = 0) -> tuple[Batches, torch.Tensor, torch.Tensor, Any]:
        generator = torch.Generator().manual_seed(100 + seed)
        targets = torch.arange(n) % 3
        centres = 2 * torch.eye(5)[:3]
        inputs = centres[targets] + torch.randn(n, 5, generator=generator)
        examples = spell_rows(inputs, ["abc"[t] for t in targets], f"{seed:04d}")
        return make_batches(examples, targets, FLOATS, batch_size), inputs, targets, class_task("a", "b", "c")

    return make


@pytest.mark.parametrize(
    ("name", "options", "decay", "schedule", "warmup", "clip", "rho"),
    [
        ("SGD", {}, 0.0, "constant", 0.0, 0.0, 0.0),
        ("SGD", {"momentum": 0.9, "nesterov": True}, 0.05, "cosine", 0.25, 0.5, 0.0),
        ("Adam", {"betas": [0.8, 0.99]}, 0.0, "linear", 0.1, 1.0, 0.0),
        ("AdamW", {}, 0.1, "cosine", 0.1, 1.0, 0.0),
        ("AdamW", {}, 0.1, "cosine", 0.1, 1.0, 0.2),
        ("RMSprop", {"alpha": 0.9}, 0.0, "cosine", 0.0, 0.0, 0.0),
    ],
)
def test_the_loop_is_torchs_optimiser_written_out(
    module_source, rows, name, options, decay, schedule, warmup, clip, rho
):
    train, _, _, task = rows(32, 8)
    target = graft(module_source(Plain), 3, seed=1)
    model = copy.deepcopy(target.model).train()
    chosen = settings(
        target,
        optimizer=name,
        optimizer_options=options,
        weight_decay=decay,
        schedule=schedule,
        warmup=warmup,
        clip_norm=clip,
        sharpness=rho,
    )
    fit(target, train, task, chosen)

    groups, rates = [], []
    for part, rate in (("backbone.low", 0.003), ("backbone.high", 0.01), ("head", 0.02)):
        own = list(model.get_submodule(part).parameters())
        for shapes, weight_decay in (((2,), decay), ((1,), 0.0)):
            inside = [p for p in own if p.ndim in shapes]
            groups.append({"params": inside, "weight_decay": weight_decay})
            rates.append(rate)
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    optimizer = getattr(torch.optim, name)(groups, lr=1.0, **kwargs)
    steps, step = 12, 0
    warm = int(warmup * steps)
    for epoch in (1, 2, 3):
        for _, inputs, targets in train.epoch(epoch):
            progress = max(0.0, (step - warm) / (steps - warm))
            bend = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
                schedule
            ]
            rise = min(1.0, (step + 1) / warm) if warm else 1.0
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * rise * bend
            F.cross_entropy(model(inputs), targets).backward()
            if rho:  # the step's gradient is that at θ + ρ · g ÷ ‖g‖
                there = copy.deepcopy(model)
                size = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
                for p, q in zip(model.parameters(), there.parameters(), strict=True):
                    q.data.add_(p.grad, alpha=rho / size)
                there.zero_grad()
                F.cross_entropy(there(inputs), targets).backward()
                for p, q in zip(model.parameters(), there.parameters(), strict=True):
                    p.grad.copy_(q.grad)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    for key, value in model.state_dict().items():
        torch.testing.assert_close(target.model.state_dict()[key], value, rtol=0, atol=1e-6)


def test_the_average_is_kept_and_training_goes_on_without_it(module_source, rows):
    train, _, _, task = rows(32, 8)
    target = graft(module_source(Plain), 3, seed=1)
    model = copy.deepcopy(target.model).train()
    recorder = Recorder()
    fit(target, train, task, settings(target, average=0.8), val=train, monitor=recorder)
    rates = {"backbone.low": 0.003, "backbone.high": 0.01, "head": 0.02}
    optimizer = torch.optim.SGD([{"params": model.get_submodule(n).parameters(), "lr": r} for n, r in rates.items()])
    steps: list[dict[str, torch.Tensor]] = []
    for epoch in (1, 2, 3):
        for _, inputs, targets in train.epoch(epoch):
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append({n: p.detach().clone() for n, p in model.named_parameters()})
    shares = [0.8**i for i in reversed(range(len(steps)))]
    shadow = {n: sum(share * at[n] for share, at in zip(shares, steps, strict=True)) / sum(shares) for n in steps[0]}
    kept = dict(target.model.named_parameters())
    assert recorder.epochs[-1].best  # so the last epoch's average is what is kept
    for name, value in shadow.items():
        torch.testing.assert_close(kept[name].detach(), value, rtol=0, atol=1e-6)
        assert not torch.equal(value, model.get_parameter(name))


def test_accumulation_is_one_large_batch_with_one_weight_penalty(module_source, rows):
    train, _, _, task = rows(32, 8)
    small, *_ = rows(32, 4)
    one = graft(module_source(Plain), 3, seed=1)
    two = graft(module_source(Plain), 3, seed=1)
    calls: list[int] = []

    def counted(target: Any) -> Penalty:
        inner = L2SP(alpha=0.5, beta=0.5).prepare(target, None, None)

        def term(batch: Any) -> torch.Tensor:
            calls.append(batch.step)
            return inner.term(batch)

        return Penalty(term)

    recorder = Recorder()
    fit(one, train, task, settings(one), penalties={"l2_sp": L2SP(0.5, 0.5).prepare(one, None, None)})
    fit(two, small, task, settings(two, accumulate=2), penalties={"l2_sp": counted(two)}, monitor=recorder)
    assert calls == list(range(12))
    assert [e.step for e in recorder.epochs] == [0, 4, 8, 12]
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[key], value, rtol=0, atol=1e-6)


def test_a_penalty_on_a_batch_counts_by_its_share_of_the_rows(module_source, rows):
    train, _, _, task = rows(10, 4)  # batches of 4, 3 and 3
    target = graft(module_source(Plain), 3)
    recorder = Recorder()
    one = Penalty(lambda batch: batch.logits.new_ones(()), per="batch")
    fit(target, train, task, settings(target, accumulate=3, epochs=1), penalties={"one": one}, monitor=recorder)
    assert recorder.epochs[-1].terms["one"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l2_is_torchs_weight_decay_over_fifty_steps(module_source, rows, momentum):
    train, _, _, task = rows(40, 8)
    by_term = graft(module_source(Plain), 3, seed=2)
    by_decay = graft(module_source(Plain), 3, seed=2)
    options = {"momentum": momentum} if momentum else {}
    fit(
        by_term,
        train,
        task,
        settings(by_term, epochs=10, optimizer_options=options),
        penalties={"l2": L2(strength=0.05).prepare(by_term, None, None)},
    )
    done = fit(by_decay, train, task, settings(by_decay, epochs=10, optimizer_options=options, weight_decay=0.05))
    assert done.steps == 50
    moved = 0.0
    for key, value in by_decay.model.state_dict().items():
        torch.testing.assert_close(by_term.model.state_dict()[key], value, rtol=0, atol=1e-6)
        if key in by_decay.anchor:
            moved = max(moved, float((value - by_decay.anchor[key]).abs().max()))
    assert moved > 0.01


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
@pytest.mark.parametrize("strategy", [LastBlocks(blocks=1), Gradual(epochs_per_stage=9)])
def test_frozen_tensors_and_buffers_are_bitwise_what_they_were(net_target, rows, strategy, batch_norm):
    train, _, _, task = rows()
    before = state(net_target)
    fit(net_target, train, task, settings(net_target, batch_norm=batch_norm), freezing=strategy)
    names = [b.name for b in net_target.blocks]
    trained = strategy(names, 1)
    changed = {n for n, t in net_target.model.state_dict().items() if not torch.equal(t, before[n])}
    owner = {t: b.name for b in net_target.blocks for t in b.tensors}
    assert {owner[n] for n in changed} == set(trained)
    statistics = {n for n in changed if "running" in n or "num_batches" in n}
    assert bool(statistics) == (batch_norm == "train" and "high" in trained)


def test_patience_counts_from_the_last_thaw(module_source, rows):
    train, _, _, task = rows()
    target = graft(module_source(Plain), 3)
    val, *_ = rows(12, 8, seed=1)
    still = dict.fromkeys(("low", "high", "head"), 1e-30)  # nothing ever gains
    chosen = settings(target, epochs=30, patience=3, rates=still)
    assert fit(target, train, task, chosen, val=val).epochs == 4  # thawed in epoch 1
    thaw = Gradual(epochs_per_stage=5)  # the last block in epoch 11
    done = fit(target, train, task, chosen, val=val, freezing=thaw)
    assert done.epochs == 14
    assert done.stopped == "no gain on val for 3 epochs"


def test_a_block_that_thaws_late_warms_up_from_there(module_source, rows):
    train, _, _, task = rows(32, 8)
    target = graft(module_source(Plain), 3)
    recorder = Recorder()
    chosen = settings(target, epochs=4, warmup=0.25)  # 4 of 16 steps
    fit(target, train, task, chosen, freezing=Gradual(), monitor=recorder)
    rates = [e.rates for e in recorder.epochs]
    assert rates[1] == pytest.approx({"head": 0.02})  # warm after its first epoch
    assert rates[2] == pytest.approx({"high": 0.01, "head": 0.02})
    firsts: list[float] = []
    probe = Penalty(lambda batch: (firsts.append(batch.step), batch.logits.new_zeros(()))[1])
    fit(graft(module_source(Plain), 3), train, task, chosen, penalties={"p": probe})
    assert firsts == list(range(16))


@pytest.mark.parametrize("mixed", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_pictures_train_and_twice_the_same(mixed):
    pictures = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spec = CallableSpec(lambda row: pictures[int(row[0])], kind="image")

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(self.body(x))
            return logits

    torch.manual_seed(0)
    source = Source.from_module(Conv(), head="fc", preprocess=spec, example=pictures[:2])
    task = class_task("a", "b")
    examples = [Example(f"{i:04d}-0", (str(i),), ("ab"[i % 2],), str(i)) for i in range(12)]
    train = make_batches(examples, torch.arange(12) % 2, spec, 4)
    found = []
    for augment in (replace(NO_AUGMENT, **mixed), replace(NO_AUGMENT, **mixed), NO_AUGMENT):
        target = graft(source, 2)
        chosen = Settings(epochs=2, rates={"body": 0.1, "head": 0.1}, optimizer="SGD", augment=augment)
        fit(target, train, task, chosen)
        found.append(state(target))
    assert all(torch.equal(t, found[1][n]) for n, t in found[0].items())
    assert any(not torch.equal(t, found[2][n]) for n, t in found[0].items())


def test_a_step_asks_for_no_number_on_its_own(module_source, rows):
    """Each such question makes the CPU wait for an accelerator."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from regraft.training.objective import Objective
    from regraft.training.optimizers import build as built
    from regraft.training.optimizers import groups

    class Asked(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    train, _, _, task = rows(16, 8)
    target = graft(module_source(Plain), 3, seed=0)
    chosen = settings(target, clip_norm=0.01, optimizer="AdamW", accumulate=2)
    set_trainable(target, ["low", "high", "head"], "frozen")
    optimizer = built("AdamW", {}, groups(target, ["low", "high", "head"], chosen.rates, 0.0))
    penalties = {"l2_sp": L2SP().prepare(target, None, None)}
    objective = Objective(target, make_spec(chosen, task, penalties=penalties), CPU)
    params = dict(target.model.named_parameters())
    before = {n: p.detach().clone() for n, p in params.items()}
    batches = list(train.epoch(1))
    with Asked() as asked:
        values = objective.step(batches, params, optimizer, 1, 0)
    assert asked.count == 0 and set(values) == {"task", "l2_sp"}
    assert any(not torch.equal(before[n], p) for n, p in params.items())
