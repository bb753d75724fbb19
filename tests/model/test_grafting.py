import copy

import pytest
import torch

from regraft.errors import PlanError
from regraft.model.grafting import graft
from regraft.model.trainable import eval_mode, set_trainable
from regraft.model.types import LoadedTensor, match_blocks
from regraft.training.optimizers import build, groups


def test_the_source_stays_untouched_and_the_anchor_is_no_view(numbers_source):
    source = numbers_source()
    before = copy.deepcopy(source.backbone.state_dict())
    target = graft(source, 5)
    kept = {n: t.clone() for n, t in target.anchor.items()}
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(1.0)
    for name, value in before.items():
        assert torch.equal(source.backbone.state_dict()[name], value)
    for name, value in kept.items():
        assert torch.equal(target.anchor[name], value)
        assert torch.equal(value, before[name.removeprefix("backbone.")])


def test_the_head_depends_on_the_seed_alone(numbers_source):
    one = graft(numbers_source(), 5, seed=3).model.head.weight
    torch.rand(11)
    state = torch.get_rng_state()
    two = graft(numbers_source(), 5, seed=3).model.head.weight
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one, graft(numbers_source(), 5, seed=4).model.head.weight)


def test_only_what_came_from_the_source_has_an_anchor(numbers_source):
    source = numbers_source()
    marks = {t.name: t for t in source.report}
    fresh = "two.0.weight"
    source.report = tuple(LoadedTensor(n, "fresh" if n == fresh else t.state, t.shape) for n, t in marks.items())
    target = graft(source, 3)
    assert f"backbone.{fresh}" not in target.anchor and "backbone.two.0.bias" in target.anchor
    assert "head.weight" not in target.anchor
    source.nothing_kept = True
    assert graft(source, 3).anchor == {}


def test_blocks_partition_the_target(numbers_source):
    target = graft(numbers_source(), 3)
    tensors = [t for b in target.blocks for t in b.tensors]
    names = [n for n, _ in target.model.named_parameters()]
    names += [n for n, _ in target.model.named_buffers()]
    assert sorted(tensors) == sorted(names)
    modules = [m for b in target.blocks for m in b.modules]
    assert sorted(modules) == sorted(n for n, _ in target.model.named_modules())
    assert target.blocks[-1].name == "head"


def test_gradient_mode_and_optimiser_membership_go_together(numbers_source):
    target = graft(numbers_source(0.5), 3)
    rates = {"one": 0.1, "two": 0.2, "head": 0.3}
    for wanted in ({"head"}, {"two", "head"}, {"one"}, {"one", "two", "head"}):
        set_trainable(target, wanted, "train")
        held = [p for g in groups(target, wanted, rates, 0.5) for p in g["params"]]
        trainable = [p for p in target.model.parameters() if p.requires_grad]
        assert len(held) == len(set(map(id, held))) == len(trainable)
        assert set(map(id, held)) == set(map(id, trainable))
        for block, module in (("one", "backbone.one.1"), ("two", "backbone.two.1")):
            assert target.model.get_submodule(module).training == (block in wanted)


def test_decay_is_for_matrices_and_each_block_has_its_rate(numbers_source):
    target = graft(numbers_source(), 3)
    found = groups(target, {"one", "head"}, {"one": 0.1, "two": 0.2, "head": 0.3}, 0.5)
    for group in found:
        matrix = group["params"][0].ndim > 1
        assert group["weight_decay"] == (0.5 if matrix else 0.0)
        assert all((p.ndim > 1) == matrix for p in group["params"])
        assert group["lr"] == {"one": 0.1, "head": 0.3}[group["block"]]


def test_state_survives_a_thaw(numbers_source):
    target = graft(numbers_source(), 3)
    rates = dict.fromkeys(("one", "two", "head"), 0.1)
    first = build("SGD", {"momentum": 0.9}, groups(target, {"head"}, rates, 0.0))
    target.model.head.weight.grad = torch.ones_like(target.model.head.weight)
    first.step()
    both = build("SGD", {"momentum": 0.9}, groups(target, {"two", "head"}, rates, 0.0), first)
    momentum = both.state[target.model.head.weight]["momentum_buffer"]
    assert torch.equal(momentum, torch.ones_like(momentum))


def test_what_matches_nothing_is_an_error_that_lists_the_blocks(numbers_source):
    target = graft(numbers_source(), 3)
    with pytest.raises(PlanError, match=r'"tow".*did you mean "two"'):
        set_trainable(target, {"tow"}, "frozen")
    with pytest.raises(PlanError, match="there are: one, two, head"):
        match_blocks("layer*", ["one", "two", "head"])
    with pytest.raises(PlanError, match=r'no "AdammW".*did you mean "AdamW"'):
        build("AdammW", {}, [])
    with pytest.raises(PlanError, match="refuses them"):
        build("SGD", {"betas": [0.1, 0.2]}, groups(target, {"head"}, {"head": 1.0}, 0.0))


def test_modes_are_put_back_after_evaluation(numbers_source):
    target = graft(numbers_source(), 3)
    set_trainable(target, {"two"}, "frozen")
    before = {n: m.training for n, m in target.model.named_modules()}
    with pytest.raises(ZeroDivisionError), eval_mode(target.model):
        assert not any(m.training for m in target.model.modules())
        raise ZeroDivisionError
    assert before == {n: m.training for n, m in target.model.named_modules()}
    assert any(before.values())
