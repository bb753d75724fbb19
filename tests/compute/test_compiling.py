"""A compiled fit is the uncompiled one, to rounding, through every change of what trains."""

from __future__ import annotations

import pytest
import torch

from regraft.compute.compiling import check_compiler, compiled
from regraft.data.batches import Batches
from regraft.data.preprocessing import build
from regraft.data.types import Augment
from regraft.errors import PlanError, RegraftError
from regraft.freezing.gradual import Gradual
from regraft.metrics import accuracy
from regraft.model.grafting import graft
from regraft.regularizers.l2_sp import L2SP
from regraft.tasks.classification import Classification
from regraft.training.loop import fine_tune
from regraft.training.settings import Settings

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_compiled_fit_is_the_same_to_rounding(numbers_source, number_rows):
    source, (rows, targets) = numbers_source(dropout=0.3), number_rows(37)
    task = Classification().make([("0",), ("1",), ("2",)], ("label",))
    ends, counts = [], []
    for compile_ in (False, True):
        target = graft(source, 3, seed=0)
        chosen = Settings(
            epochs=3,
            rates=dict.fromkeys([b.name for b in target.blocks], 0.01),
            compile=compile_,
            augment=Augment(random_resized_crop=False, flip=False),
        )
        penalties = {"l2_sp": L2SP(alpha=0.1).prepare(target, None, None)}
        torch._dynamo.utils.counters.clear()
        fit = fine_tune(
            target,
            Batches(rows, targets, build(source.preprocess), 8),
            None,
            task,
            accuracy,
            chosen,
            freezing=Gradual(),
            penalties=penalties,
            device=CPU,
            seed=0,
        )
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        ends.append(target.model.state_dict())
        assert fit.steps == 15
    assert counts[0] == 0 and counts[1] >= 3  # anew at each thaw
    moved = [n for n, t in graft(source, 3, seed=0).model.state_dict().items() if not torch.equal(t, ends[0][n])]
    assert "backbone.one.0.weight" in moved
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_plan_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PlanError, match=r"fit.compile: there is no C.. compiler no-such-compiler here"):
        check_compiler(CPU)


def test_a_model_that_cannot_be_compiled_says_so(monkeypatch):
    class Fails(torch._dynamo.exc.TorchDynamoException):
        pass

    Fails.__module__ = "torch._dynamo.exc"

    def fail(*inputs):
        raise Fails("\nno such operator\nand so on")

    monkeypatch.setattr(torch, "compile", lambda module, **how: fail)
    call = compiled(torch.nn.Identity())
    with pytest.raises(RegraftError, match=r"fails on this model \(Fails: no such operator\): set fit"):
        call(torch.zeros(1))
