"""From a model's logits to scored rows: order, modes, and numbers that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from builders import CPU
from regraft.data.types import Example
from regraft.errors import DivergedError
from regraft.evidence.scoring import score
from regraft.model.forward import outputs
from regraft.tasks.classification import Classification

TASK = Classification().make([("a",), ("b",)], ("label",))


class Rows:
    """Batches as they stand: what ``outputs`` needs of them."""

    def __init__(self, batches):
        self.batches = batches

    @property
    def examples(self):
        return examples([i for ids, _, _ in self.batches for i in ids])

    def __len__(self):
        return len(self.examples)

    def deal(self, rank, size, view=0):
        return iter(self.batches[rank::size])


def examples(ids, groups=None):
    groups = groups or [None] * len(ids)
    return [Example(i, (i,), ("a",), i, g) for i, g in zip(ids, groups, strict=True)]


def test_scoring_keeps_modes_weights_and_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.train()
    model[1].eval()  # a frozen block
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(5, 3)
    y = torch.tensor([0, 1, 0, 1, 1])
    batches = [(("a", "b", "c"), x[:3], y[:3]), (("d", "e"), x[3:], y[3:])]
    rows = outputs(model, Rows(batches), CPU)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    found = score(rows, TASK, examples("abcde", ["g", "g", None, "h", "h"]))
    expected = model.eval()(x).double().softmax(1).detach().numpy()
    assert found.ids == tuple("abcde")
    assert found.truth.tolist() == y.tolist()
    assert found.groups == ("g", "g", None, "h", "h")
    np.testing.assert_allclose(found.scores, expected, atol=1e-7)


def test_rows_without_groups_have_none():
    rows = outputs(nn.Identity(), Rows([(("a", "b"), torch.eye(2), torch.tensor([0, 1]))]), CPU)
    assert score(rows, TASK, examples("ab")).groups is None


def test_outputs_take_dicts_of_tensors_and_can_be_learnt_from():
    class Net(nn.Module):
        def forward(self, inputs):
            return inputs["x"] * inputs["mask"]

    inputs = {"x": torch.eye(2), "mask": torch.ones(2, 1)}
    rows = outputs(Net(), Rows([(("a", "b"), inputs, torch.tensor([0, 1]))]), CPU)
    assert torch.equal(rows.values, torch.eye(2))
    w = torch.ones(2, requires_grad=True)
    (rows.values @ w).sum().backward()  # a tensor of inference mode would refuse
    assert w.grad is not None


def test_scores_that_are_not_finite_are_an_error_naming_the_rows():
    x = torch.tensor([[float("nan"), 0.0], [0.0, 1.0]])
    rows = outputs(nn.Identity(), Rows([(("bad", "good"), x, torch.tensor([0, 1]))]), CPU)
    with pytest.raises(DivergedError, match=r"1 of 2 rows.*\(bad\)"):
        score(rows, TASK, examples(["bad", "good"]))
