"""What does not go with divided weights; that they train as whole ones do is in test_processes.py."""

from __future__ import annotations

import pytest

from regraft.errors import PlanError
from regraft.freezing.everything import Everything
from regraft.freezing.lora import LoRA
from regraft.plan import Plan
from regraft.regularizers.bss import BSS
from regraft.regularizers.ewc import EWC
from regraft.regularizers.l2 import L2
from regraft.sharding import check_shard
from regraft.types import Penalty


def test_what_needs_whole_weights_is_refused_all_at_once(monkeypatch):
    plan = Plan.model_validate(
        {"source": {"ref": "x"}, "data": {"path": "x"}, "fit": {"compile": True, "average": 0.9},
         "run": {"spread": "arms", "shard": True}, "source_data": {"each_epoch": True}}
    )  # fmt: skip
    step, batch = Penalty(lambda b: b.logits.sum()), Penalty(lambda b: b.logits.sum(), per="batch")
    penalties = {"ewc": (EWC(), step), "l2": (L2(), step), "bss": (BSS(), batch)}
    with pytest.raises(PlanError) as error:
        check_shard(plan, LoRA(), penalties)
    said = str(error.value)
    for part in (
        "one process",
        "arms",
        "compile",
        "average",
        "each_epoch",
        "adapters",
        "ewc",
        "l2",
    ):
        assert part in said, part
    assert "bss" not in said
    plain = Plan.model_validate({"source": {"ref": "x"}, "data": {"path": "x"}})
    monkeypatch.setattr("regraft.processes.size", lambda: 2)
    check_shard(plain, Everything(), {"bss": penalties["bss"]})
