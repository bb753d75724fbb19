"""The learning-rate range test: it finds where training breaks, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from builders import CPU, class_task, make_batches, make_settings, make_spec
from regraft.commands.rates import DECAY, WORSE, Sweep, Tried, fell, format_range_test, range_test
from regraft.data.preprocessing import build
from regraft.errors import UsageError
from regraft.freezing.everything import Everything
from regraft.freezing.head_only import HeadOnly
from regraft.model.grafting import graft
from regraft.tasks.regression import Regression
from regraft.training.records import FitData

BLOCKS = ["one", "two", "head"]


def settings(rate, **more):
    return make_settings(BLOCKS, 1, rate, optimizer="SGD", clip_norm=0.0, **more)


def trial(source, rows, target, task, chosen, *, freezing, batch=21, **sweep):
    spec = make_spec(chosen, task, freezing=freezing)
    data = FitData(make_batches(*rows, source.preprocess, batch))
    return range_test(target, data, spec, CPU, Sweep(**sweep))


def test_gradient_descent_breaks_at_two_over_the_curvature(numbers_source, number_rows):
    """Full-batch descent on the head of a least-squares loss diverges for a rate above 2/λmax."""
    source, (rows, _) = numbers_source(), number_rows(40)
    target = graft(source, 1)
    task = Regression().make([(str(float(i)),) for i in range(40)], ("y",))
    y = task.encode([(str(float(i % 7)),) for i in range(40)])
    with torch.no_grad():
        x = torch.stack([build(source.preprocess).one(e.inputs) for e in rows])
        z = torch.cat([source.backbone.eval()(x), torch.ones(40, 1)], 1)
        gradient_at = torch.zeros(z.shape[1], 1, requires_grad=True)
    loss = task.loss(z @ gradient_at, y).mean()
    (g,) = torch.autograd.grad(loss, gradient_at, create_graph=True)
    hessian = torch.stack(
        [torch.autograd.grad(g[i, 0], gradient_at, retain_graph=True)[0][:, 0] for i in range(len(g))]
    )
    edge = 2 / float(torch.linalg.eigvalsh(hessian).max())
    found = trial(
        source, (rows, y), target, task, settings(edge), freezing=HeadOnly(), batch=40, steps=120, low=1e-2, high=1e2
    )
    assert found.broke is not None and edge < found.broke < 5 * edge
    assert 0.05 * edge < found.least.lr < found.broke
    below = [t for t in found.tried if t.lr < edge / 2]
    losses = [t.loss for t in below]
    assert losses == sorted(losses, reverse=True)  # descent under the edge
    assert found.fell and f"--lr {found.least.lr / 10:.2g}" in format_range_test(found)

    with torch.no_grad():  # a head that has fitted the rows: no rate can make the loss fall
        solved = torch.linalg.lstsq(z, y).solution[:, 0]
        target.model.head.weight.copy_(solved[None, :-1])
        target.model.head.bias.copy_(solved[-1:])
    found = trial(
        source, (rows, y), target, task, settings(edge), freezing=HeadOnly(), batch=8, steps=120, low=1e-2, high=1e2
    )
    said = format_range_test(found)
    assert not found.fell and "cannot tell" in said and "--lr" not in said
    assert found.broke is not None and f"{found.broke:.2g}" in said


def test_the_smoothed_loss_is_the_average_it_says(numbers_source, number_rows):
    source, rows = numbers_source(), number_rows(21)
    task = class_task("0", "1", "2")
    found = trial(
        source,
        rows,
        graft(source, 3),
        task,
        settings(0.01),
        freezing=Everything(),
        batch=7,
        steps=30,
        low=0.1,
        high=1e4,
    )
    mean = 0.0
    for i, t in enumerate(found.tried):
        mean = DECAY * mean + (1 - DECAY) * t.loss
        assert t.smoothed == pytest.approx(mean / (1 - DECAY ** (i + 1)))
    growth = [b.factor / a.factor for a, b in zip(found.tried, found.tried[1:], strict=False)]
    assert growth == pytest.approx([growth[0]] * len(growth))
    assert found.tried[0].lr == pytest.approx(0.001)
    assert found.least.smoothed == min(t.smoothed for t in found.tried)
    if found.broke is not None and len(found.tried) < 30:
        assert found.tried[-1].smoothed > WORSE * found.least.smoothed or found.broke > found.tried[-1].lr


@pytest.mark.parametrize("high", [10.0, 1e30])  # the second ends in a loss that is not finite
def test_everything_is_left_as_it_was(numbers_source, number_rows, high):
    source, rows = numbers_source(dropout=0.5), number_rows(21)
    target = graft(source, 3)
    target.model.eval()
    task = class_task("0", "1", "2")
    before = {n: t.clone() for n, t in target.model.state_dict().items()}
    learns = [p.requires_grad for p in target.model.parameters()]
    state = torch.get_rng_state()

    def tested():
        how = settings(0.1, batch_norm="train")
        return trial(source, rows, target, task, how, freezing=Everything(), batch=7, steps=12, low=0.1, high=high)

    found = tested()
    assert all(torch.equal(t, before[n]) for n, t in target.model.state_dict().items())
    assert [p.requires_grad for p in target.model.parameters()] == learns
    assert all(p.grad is None for p in target.model.parameters())
    assert not any(m.training for m in target.model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert tested() == found
    if high > 1e20:
        assert found.broke is not None and f" {found.broke:.2g}. " in format_range_test(found)


def test_a_test_of_one_step_is_refused(numbers_source, number_rows):
    source, rows = numbers_source(), number_rows(21)
    task = class_task("0", "1", "2")
    with pytest.raises(UsageError, match="2 steps or more"):
        trial(source, rows, graft(source, 3), task, settings(0.1), freezing=Everything(), steps=1)


@pytest.mark.parametrize(
    ("first", "least", "told"),
    [([1.0] * 10, 0.95, False), ([1.0] * 10, 0.85, True), ([0.5, 1.5] * 5, 0.7, False), ([0.5, 1.5] * 5, 0.6, True)],
)
def test_a_fall_is_a_tenth_of_the_loss_and_more_than_its_noise(first, least, told):
    tried = [Tried(1.0, 1.0, loss, loss) for loss in first * 10]  # the first tenth is the first ten
    assert fell(tried, Tried(10.0, 10.0, least, least)) == told
