"""The line in weight space: its ends, its points, its batch norms, and who is chosen."""

import numpy as np
import pytest
import torch
from torch import nn

from builders import CPU
from regraft.errors import PlanError
from regraft.evidence.frontier import ALPHAS, blend, choose, evaluate_points, load_point
from regraft.evidence.retention import retention_of
from regraft.evidence.scoring import Predictions
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


def test_the_unchanged_source_keeps_a_floor_that_rows_cannot_prove():
    start = Point(0.0, {"accuracy": 0.5, "loss": 1.0}, Retained(0.8, 0.8, 1.0, 0.97))
    assert choose([start, kept(0.4, 0.7, 0.96)], accuracy, 0.98).alpha == 0
    assert choose([start, kept(0.4, 0.7, 0.985)], accuracy, 0.98).alpha == 0.4


def test_a_point_beyond_one_that_fails_the_floor_is_never_chosen():
    points = [kept(0.0, 0.5, 0.99), kept(0.4, 0.6, 0.97), kept(0.7, 0.9, 0.99)]
    assert choose(points, accuracy, 0.98).alpha == 0


def plateau(rng, rows, level, own):
    """Points that from α = 0.1 on keep ``level`` of the source's right rows; ``own`` of draws are each point's."""
    truth, ids = rng.integers(0, 10, rows), tuple(map(str, range(rows)))
    right, shared, points = rng.random(rows) < 0.8, rng.random(rows), []

    def predictions(hit):
        return Predictions(ids, truth, np.eye(10)[np.where(hit, truth, (truth + 1) % 10)])

    for alpha in ALPHAS:
        drawn = np.where(rng.random(rows) < own, rng.random(rows), shared)
        after = right & (drawn < level) if alpha else right
        source = retention_of(accuracy, predictions(right), predictions(after))
        points.append(Point(alpha, {"accuracy": 0.5 + alpha / 10, "loss": 1.0}, source))
    return points


@pytest.mark.parametrize("own", [0.2, 1.0])
def test_a_plateau_just_under_the_floor_passes_rarely(own):
    rng, draws = np.random.default_rng(26), 400
    floor = (0.8 * 0.9 - 0.1) / (0.8 - 0.1) + 0.002  # of the plateau's true retention, and a little above
    passed, any_alone = 0, 0
    for _ in range(draws):
        points = plateau(rng, 400, 0.9, own)
        passed += choose(points, accuracy, floor).alpha > 0
        any_alone += any(p.source.low >= floor for p in points[1:])
    print(f"own {own}: {passed / draws:.3f} pass, {any_alone / draws:.3f} if each point were tested alone")
    assert passed <= 0.06 * draws
    assert any_alone > 2 * passed


def test_a_floor_out_of_reach_names_the_best_that_can_be_had():
    points = [kept(0.0, 0.5, 0.97), kept(1, 0.9, 0.4)]
    with pytest.raises(PlanError, match=r"0\.98 .*α = 0 keeps only 0\.970"):
        choose(points, accuracy, 0.98)
    with pytest.raises(PlanError, match="no retention of the source is known"):
        choose([point(0, 0.5, 1.0)], accuracy, 0.98)
