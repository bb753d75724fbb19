"""Sharpness-aware steps, against the formula by hand."""

import pytest
import torch

from regraft.training.sam import ascend


def test_the_gradient_is_taken_where_the_loss_is_highest_nearby():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    (w.square().sum() / 2).backward()  # ∇L(w) = w, ‖w‖ = 5
    with ascend([w], 0.5):
        assert w.grad is None
        torch.testing.assert_close(w.detach(), torch.tensor([3.3, 4.4]))
        (w.square().sum() / 2).backward()
    assert torch.equal(w.detach(), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(w.grad, torch.tensor([3.3, 4.4]))


def test_the_norm_is_over_all_and_those_without_gradient_stay():
    a, b = torch.tensor([3.0], requires_grad=True), torch.tensor([[4.0]], requires_grad=True)
    still = torch.ones(2, requires_grad=True)
    (a.sum() * 3 + b.sum() * 4).backward()
    with ascend([a, still, b], 1.0):
        torch.testing.assert_close(a.detach(), torch.tensor([3.6]))
        torch.testing.assert_close(b.detach(), torch.tensor([[4.8]]))
        assert torch.equal(still.detach(), torch.ones(2))


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_no_direction_moves_nothing(slope):
    w = torch.ones(2, requires_grad=True)
    (w * slope).sum().backward()
    with ascend([w], 1.0):
        assert torch.equal(w.detach(), torch.ones(2))
