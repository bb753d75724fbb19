"""The line in weight space: its ends, its points, its batch norms, and who is chosen."""

import pytest
import torch
from torch import nn

from builders import CPU
from regraft.errors import PlanError
from regraft.evidence.frontier import ALPHAS, blend, choose, evaluate_points, load_point
from regraft.metrics import accuracy, log_loss
from regraft.model.grafting import graft
from regraft.model.weights import snapshot
from regraft.runs.estimates import Point, Retained


def ends(source):
    target = graft(source, 3)
    start = snapshot(target)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p))
    return target, start, snapshot(target)


def no_rows():
    raise AssertionError("equal statistics stay: there is nothing to estimate")


def test_ends_are_exact_and_points_between_the_weighted_mean(numbers_source):
    target, start, end = ends(numbers_source())
    for alpha in (0.0, 0.3, 1.0):
        load_point(target, start, end, alpha, no_rows, CPU)
        for name, t in target.model.state_dict().items():
            if alpha in (0, 1):
                assert torch.equal(t, (end if alpha else start)[name]), name
            elif t.is_floating_point():
                torch.testing.assert_close(t, 0.7 * start[name] + 0.3 * end[name])


def test_a_linear_models_logits_move_on_a_line():
    net = nn.Linear(4, 3)
    start = snapshot_of(net)
    nn.init.normal_(net.weight)
    end, x = snapshot_of(net), torch.randn(5, 4)

    def logits(alpha):
        net.load_state_dict(blend(start, end, alpha))
        return net(x)

    torch.testing.assert_close(logits(0.4), 0.6 * logits(0.0) + 0.4 * logits(1.0))


def snapshot_of(net):
    return {n: t.clone() for n, t in net.state_dict().items()}


def test_statistics_that_moved_are_those_of_the_blended_weights(numbers_source):
    target, start, end = ends(numbers_source())
    x = torch.randn(40, 4) * 3 + 1
    name = "backbone.one.1.running_mean"
    end[name] = end[name] + 5.0
    train = [(("a",), x, torch.zeros(40))]
    load_point(target, start, end, 0.5, lambda: train, CPU)
    backbone = target.model.backbone
    into = backbone.one[0](x).detach()  # what the batch norm sees
    torch.testing.assert_close(backbone.one[1].running_mean, into.mean(0))
    torch.testing.assert_close(backbone.one[1].running_var, into.var(0))
    assert backbone.one[1].momentum == 0.1
    load_point(target, start, end, 1.0, no_rows, CPU)
    assert torch.equal(backbone.one[1].running_mean, end[name])


def test_a_walk_visits_eleven_points_and_ends_at_the_fit():
    seen = []
    points = evaluate_points(seen.append, lambda: {"accuracy": seen[-1], "loss": 0.0})
    assert seen == [p.alpha for p in points] == list(ALPHAS)
    assert len(seen) == 11 and seen[0] == 0 and seen[-1] == 1


def point(alpha, value, loss, name="accuracy"):
    return Point(alpha, {name: value, "loss": loss})


def test_the_metric_decides_then_the_loss_then_the_smaller_alpha():
    points = [point(1.0, 0.9, 0.2), point(0.5, 0.9, 0.2), point(0.6, 0.9, 0.3), point(0, 0.8, 0.1)]
    assert choose(points, accuracy).alpha == 0.5
    assert choose([*points, point(0.7, 0.9, 0.1)], accuracy).alpha == 0.7
    assert choose([*points, point(0.9, 0.91, 9.0)], accuracy).alpha == 0.9


def test_where_lower_is_better_the_lowest_is_chosen():
    points = [point(a, v, v, "log_loss") for a, v in ((0, 0.9), (0.5, 0.4), (1, 0.6))]
    assert choose(points, log_loss).alpha == 0.5


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_counters_are_whole_numbers(alpha):
    start, end = {"n": torch.tensor(0)}, {"n": torch.tensor(7)}
    assert blend(start, end, alpha)["n"].item() == (0 if alpha == 0 else 7)


def kept(alpha, value, low):
    return Point(alpha, {"accuracy": value, "loss": 1.0}, Retained(0.8, 0.8, low + 0.01, low))


def test_a_floor_leaves_out_points_that_do_not_keep_it_for_sure():
    points = [kept(0.0, 0.5, 0.995), kept(0.4, 0.7, 0.98), kept(0.7, 0.8, 0.979), kept(1, 0.9, 0.4)]
    assert choose(points, accuracy).alpha == 1
    assert choose(points, accuracy, 0.98).alpha == 0.4  # the point value of 0.7's would pass
    assert choose(points, accuracy, 0.99).alpha == 0


def test_a_floor_out_of_reach_names_the_best_that_can_be_had():
    points = [kept(0.0, 0.5, 0.97), kept(1, 0.9, 0.4)]
    with pytest.raises(PlanError, match=r"no point keeps 0\.98 .* the best is 0\.970, at α = 0"):
        choose(points, accuracy, 0.98)
    with pytest.raises(PlanError, match="no retention of the source is known"):
        choose([point(0, 0.5, 1.0)], accuracy, 0.98)
