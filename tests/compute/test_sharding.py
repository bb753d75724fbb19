"""What does not go with divided weights; that they train as whole ones do is in test_processes.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from regraft.data.types import CallableSpec
from regraft.errors import PlanError
from regraft.model.grafting import graft
from regraft.model.sharded import outermost_modules
from regraft.model.types import Source
from regraft.pipeline.prepare import check_shard
from regraft.plan.read import check
from regraft.regularizers import Penalty
from regraft.regularizers.bss import BSS
from regraft.regularizers.ewc import EWC
from regraft.regularizers.l2 import L2

PLAIN = {"source": {"ref": "x"}, "data": {"path": "x"}, "fit": {"optimizer": "AdamW"}}


def target_of(net, example=(4, 5)):
    spec = CallableSpec(torch.as_tensor)
    source = Source.from_module(net, head="fc", preprocess=spec, example=torch.randn(*example), name="net")
    return graft(source, 3, seed=0)


def network():
    net = nn.Sequential()
    net.low = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    net.high = nn.Sequential(nn.Linear(6, 4))
    net.fc = nn.Linear(4, 2)
    return net


def test_what_needs_whole_weights_is_refused_all_at_once():
    plan = check(
        PLAIN
        | {
            "fit": {"compile": True, "average": 0.9, "views": 2, "optimizer": "Adafactor"},
            "run": {"spread": "arms", "shard": True, "layout": "channels_last"},
            "source_data": {"each_epoch": True},
            "freezing": {"name": "lora"},
        }
    )
    step, batch = Penalty(lambda b: b.logits.sum()), Penalty(lambda b: b.logits.sum(), per="batch")
    penalties = {
        "ewc": (EWC(), batch),
        "l2": (L2(), step),
        "mapped": (BSS(), replace(batch, maps=True)),
        "proximal": (BSS(), replace(batch, after=lambda params, rates: None)),
        "bss": (BSS(), batch),
    }
    with pytest.raises(PlanError) as error:
        check_shard(plan, penalties, target_of(network()))
    said = str(error.value)
    for part in (
        "arms",
        "layout",
        "compile",
        "average",
        "views",
        "Adafactor",
        "each_epoch",
        "adapters",
        "ewc",
        "l2",
        "mapped",
        "proximal",
    ):
        assert part in said, part
    assert "bss" not in said
    check_shard(check(PLAIN), {"bss": penalties["bss"]}, target_of(network()))


def test_weights_that_cannot_be_divided_are_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high, self.fc = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.gain = nn.Parameter(torch.tensor(1.0))
            self.high.weight = self.low.weight

        def forward(self, x):
            return self.fc(self.high(self.low(x)) * self.gain)

    target = target_of(Scaled())
    with pytest.raises(PlanError) as error:
        check_shard(check(PLAIN), {}, target)
    assert "backbone.low.weight = backbone.high.weight" in str(error.value)
    assert "backbone.gain" in str(error.value)


def test_each_block_is_divided_by_itself_the_last_one_too():
    found = outermost_modules(target_of(network()))
    assert found == [["backbone.low"], ["backbone.high", "backbone.fc"]]  # where the source's head was
