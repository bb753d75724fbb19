"""Every penalty of regularizers/: scalar, finite, zero at θs where it pulls there, felt by θ."""

import pytest
import torch

from regraft.freeze import set_trainable
from regraft.grafting import graft
from regraft.plugins import names, options_class
from regraft.types import Batch

ALL = names("regularizers")


def setting(source, name, **options):
    target = graft(source, 3)
    set_trainable(target, {b.name for b in target.blocks}, "frozen")
    before = {n: t.clone() for n, t in target.model.state_dict().items()}
    penalty = options_class("regularizers", name)(**options).prepare(target)
    for n, t in target.model.state_dict().items():
        assert torch.equal(t, before[n]), "prepare leaves the target bitwise untouched"
    return target, penalty


def batch(target):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    features = target.model.backbone(x)
    params = {n: p for n, p in target.model.named_parameters() if p.requires_grad}
    logits = target.model.head(features)
    return Batch(0, tuple("abcde"), params, x, features, logits, torch.zeros(5).long())


@pytest.mark.parametrize("name", ALL)
def test_scalar_finite_and_zero_at_the_source(numbers_source, name):
    target, penalty = setting(numbers_source(), name)
    with torch.no_grad():
        for p in target.model.head.parameters():
            p.zero_()  # what is fresh has no source value
    value = penalty.term(batch(target)).detach()
    assert value.ndim == 0 and torch.isfinite(value)
    assert (float(value) == 0) == options_class("regularizers", name).pulls_to_source
    assert penalty.per in ("step", "batch")


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_reaches_the_weights(numbers_source, name):
    target, penalty = setting(numbers_source(), name)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    penalty.term(batch(target)).backward()
    grads = [p.grad for p in target.model.backbone.parameters() if p.ndim > 1]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_block_is_not_penalised(numbers_source, name):
    target, penalty = setting(numbers_source(), name)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(0.1)
    everything = float(penalty.term(batch(target)).detach())
    set_trainable(target, {"head"}, "frozen")
    assert float(penalty.term(batch(target)).detach()) < everything


def test_values_by_hand(numbers_source):
    target, l2_sp = setting(numbers_source(), "l2_sp", alpha=0.4, beta=0.06)
    params = dict(target.model.named_parameters())
    with torch.no_grad():
        for n, p in params.items():
            p.copy_(target.anchor[n] + 0.5 if n in target.anchor else torch.full_like(p, 2.0))
    kept = sum(p.numel() for n, p in params.items() if n in target.anchor)
    by_hand = 0.2 * 0.25 * kept + 0.03 * 4 * 18  # the head's matrix is 3 × 6; its bias is free
    assert float(l2_sp.term(batch(target)).detach()) == pytest.approx(by_hand, rel=1e-5)

    target, l2 = setting(numbers_source(), "l2", strength=0.1)
    _, l1 = setting(numbers_source(), "l1", strength=0.1)
    with torch.no_grad():
        for p in target.model.parameters():
            p.fill_(-3.0)
    matrices = 4 * 8 + 8 * 6 + 6 * 3
    assert float(l2.term(batch(target)).detach()) == pytest.approx(0.05 * 9 * matrices)
    assert float(l1.term(batch(target)).detach()) == pytest.approx(0.1 * 3 * matrices)


def test_l2_sp_with_its_anchor_at_zero_is_l2_on_matrices(numbers_source):
    target, l2_sp = setting(numbers_source(), "l2_sp", alpha=0.3, beta=0.3)
    for name, value in target.anchor.items():
        p = target.model.get_parameter(name)
        value.zero_() if p.ndim > 1 else value.copy_(p.detach())  # biases at their anchor: no pull
    _, l2 = setting(numbers_source(), "l2", strength=0.3)
    torch.testing.assert_close(l2_sp.term(batch(target)), l2.term(batch(target)))
