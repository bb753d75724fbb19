"""A compiled fit is the uncompiled one, to rounding, through every change of what trains."""

from __future__ import annotations

import pytest
import torch

from builders import class_task, fit, make_batches, make_settings
from regraft.compute.compiling import check_compiler, compile_module
from regraft.compute.device import Compute
from regraft.errors import PlanError, RegraftError
from regraft.freezing.gradual import Gradual
from regraft.model.grafting import graft
from regraft.regularizers.l2_sp import L2SP


@pytest.mark.slow
def test_a_compiled_fit_is_the_same_to_rounding(numbers_source, number_rows):
    source, (rows, targets) = numbers_source(dropout=0.3), number_rows(37)
    task = class_task("0", "1", "2")
    ends, counts = [], []
    for compile_ in (False, True):
        target = graft(source, 3, seed=0)
        penalties = {"l2_sp": L2SP(alpha=0.1).prepare(target, None, None)}
        chosen = make_settings([b.name for b in target.blocks], 3)
        train = make_batches(rows, targets, source.preprocess, 8)
        torch._dynamo.utils.counters.clear()
        done = fit(
            target, train, task, chosen, compute=Compute(compile=compile_), freezing=Gradual(), penalties=penalties
        )
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        ends.append(target.model.state_dict())
        assert done.steps == 15
    assert counts[0] == 0 and counts[1] >= 3  # anew at each thaw
    moved = [n for n, t in graft(source, 3, seed=0).model.state_dict().items() if not torch.equal(t, ends[0][n])]
    assert "backbone.one.0.weight" in moved
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_plan_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PlanError, match=r"fit.compile: there is no C.. compiler no-such-compiler here"):
        check_compiler(torch.device("cpu"))


def test_a_model_that_cannot_be_compiled_says_so(monkeypatch):
    class Fails(torch._dynamo.exc.TorchDynamoException):
        pass

    Fails.__module__ = "torch._dynamo.exc"

    def fail(*inputs):
        raise Fails("\nno such operator\nand so on")

    monkeypatch.setattr(torch, "compile", lambda module, **how: fail)
    call = compile_module(torch.nn.Identity())
    with pytest.raises(RegraftError, match=r"fails on this model \(Fails: no such operator\): set fit"):
        call(torch.zeros(1))
