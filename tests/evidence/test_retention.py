"""Forgetting: by hand counts and simulation; its proxies by scipy and what CKA is invariant to."""

from math import isnan

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from regraft.evidence.retention import linear_cka, measure_proxies, measure_retention, retention_of
from regraft.evidence.scoring import Predictions, gain
from regraft.metrics import accuracy, log_loss, macro_f1
from regraft.runs.result_parts import Agreement, FeatureSimilarity
from regraft.tasks.classification import Classification


def features(seed, n=30, d=6):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def test_the_source_agrees_with_itself(numbers_source):
    x = features(0)
    found = measure_proxies(numbers_source(), x, x)
    assert isinstance(found, Agreement)
    assert found.agreement.value == 1 and found.agreement.low < 1  # 30 rows are no proof
    assert found.divergence.value == 0


def test_agreement_is_a_count_and_divergence_is_scipys(numbers_source):
    source, x, y = numbers_source(), features(0), features(1)
    found = measure_proxies(source, x, y)
    p, q = (source.head(t).softmax(1).detach().double().numpy() for t in (x, y))
    same = sum(a == b for a, b in zip(p.argmax(1), q.argmax(1), strict=True))
    assert 0 < same < 30 and found.agreement.value == pytest.approx(same / 30)
    by_row = entropy(p, q, axis=1)
    assert found.divergence.value == pytest.approx(by_row.mean(), rel=1e-4)
    assert found.divergence.low < by_row.mean() < found.divergence.high


def test_rows_of_one_group_count_as_one(numbers_source):
    source, x, y = numbers_source(), features(0), features(1)
    rows = measure_proxies(source, x.repeat(4, 1), y.repeat(4, 1))
    groups = [f"g{i}" for i in range(30)] * 4
    grouped = measure_proxies(source, x.repeat(4, 1), y.repeat(4, 1), groups)
    for name in ("agreement", "divergence"):
        a, b = getattr(rows, name), getattr(grouped, name)
        assert b.high - b.low > 1.5 * (a.high - a.low)


@pytest.mark.parametrize("change", ["headless", "regression"])
def test_without_a_head_of_classes_features_are_compared(numbers_source, change):
    source = numbers_source()
    if change == "headless":
        source.head = None
    else:
        source.task = "regression"
    found = measure_proxies(source, features(0), features(1))
    assert found == FeatureSimilarity(cka=linear_cka(features(0), features(1)))


def test_cka_knows_rotation_and_scale_and_tells_others_apart():
    x = features(0, n=400)
    turn = torch.linalg.qr(features(2, 6, 6)).Q
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, features(1, n=400)) < 0.1
    centred = [t.double() - t.double().mean(0) for t in (x, features(1, n=400))]
    k, m = (c @ c.T for c in centred)
    by_kernel = (k * m).sum() / (k.square().sum() * m.square().sum()).sqrt()
    assert linear_cka(x, features(1, n=400)) == pytest.approx(float(by_kernel))
    assert isnan(linear_cka(x, torch.ones(400, 2)))


# ---------------------------------------------------------------- with source data


def answers(right, truth, classes=4):
    """Scores that are right on the rows where ``right`` is 1, and next to it elsewhere."""
    scores = np.zeros((len(truth), classes))
    scores[np.arange(len(truth)), np.where(right, truth, (truth + 1) % classes)] = 1.0
    return Predictions(tuple(f"r{i}" for i in range(len(truth))), truth, scores)


@pytest.fixture
def before_and_after():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), [70, 60, 50, 40])
    was = rng.random(220) < 0.8
    lost = was & (rng.random(220) < 0.1)
    return answers(was, truth), answers(was & ~lost, truth)


def test_retention_is_over_chance_and_forgetting_is_paired(before_and_after):
    before, after = before_and_after
    b, a = (float((s.scores.argmax(1) == s.truth).mean()) for s in before_and_after)
    found = retention_of(accuracy, before, after)
    assert (found.before, found.after) == (b, a)
    chance = 70 / 220  # the most frequent class for every row
    assert found.ratio == pytest.approx((a - chance) / (b - chance))
    assert 0 < found.ratio - found.low < 0.1
    task = Classification().make([(c,) for c in "abcd"], ("label",))
    said = measure_retention(accuracy, task, before, [after], [after])
    assert said.forgetting == gain(accuracy, before, after)
    assert said.forgetting.value == pytest.approx(b - a) and said.forgetting.low > 0
    assert said.claim and "at alpha 1" not in said.model_dump()
    assert said.ratio == found.ratio and said.before.value == b


def test_nothing_forgotten_is_no_certainty(before_and_after):
    before, _ = before_and_after
    found = retention_of(accuracy, before, before)
    assert found.ratio == 1 and 0.97 < found.low < 1
    few = [Predictions(s.ids[:30], s.truth[:30], s.scores[:30]) for s in (before, before)]
    assert retention_of(accuracy, *few).ratio is None  # one class alone: chance is not beaten


def test_the_bound_covers_a_true_retention():
    """Rows lose the right answer with a known chance; the bound is below the truth in 95 %."""
    rng = np.random.default_rng(1)
    truth = np.arange(250) % 4
    under = 0
    for _ in range(300):
        was = rng.random(250) < 0.85
        after = was & (rng.random(250) < 0.95) | ~was & (rng.random(250) < 0.1)
        true = (0.85 * 0.95 + 0.15 * 0.1 - 0.25) / (0.85 - 0.25)
        under += retention_of(accuracy, answers(was, truth), answers(after, truth)).low <= true
    assert under >= 0.93 * 300


def test_where_less_is_better_retention_is_not_defined(before_and_after):
    found = retention_of(log_loss, *before_and_after)
    assert found.ratio is None and found.low is None


def test_a_metric_that_is_no_share_has_a_bootstrap_bound(before_and_after):
    found = retention_of(macro_f1, *before_and_after)
    assert 0.5 < found.low < found.ratio < 1


def test_the_most_forgotten_classes_come_first_small_ones_never():
    truth = np.repeat(np.arange(4), [20, 20, 20, 9])
    after = np.ones(69, dtype=bool)
    after[[0, 20, 21, 22, 60, 61, 62, 63]] = False
    task = Classification().make([(c,) for c in "abcd"], ("label",))
    fitted = [answers(after, truth)]
    said = measure_retention(accuracy, task, answers(np.ones(69, dtype=bool), truth), fitted, fitted)
    assert [(c.name, c.after) for c in said.most_forgotten] == [("b", 0.85), ("a", 0.95)]
    assert not said.claim


def test_over_seeds_forgetting_carries_their_variance(before_and_after):
    before, after = before_and_after
    others = [after, before, answers(after.scores.argmax(1) == 0, after.truth)]
    task = Classification().make([(c,) for c in "abcd"], ("label",))
    said = measure_retention(accuracy, task, before, others, [before, *others[1:]])
    over, one = said.over_seeds, said.forgetting
    assert over.high - over.low > 2 * (one.high - one.low)
    assert len(said.seeds) == len(said.at_alpha_1) == 3
    assert said.gain_over_alpha_1.value == pytest.approx(-one.value / 3)
