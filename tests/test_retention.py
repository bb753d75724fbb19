"""Proxies of forgetting, against scipy, hand counts and what CKA is invariant to."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from regraft.retention import linear_cka, proxies


def features(seed, n=30, d=6):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def test_the_source_agrees_with_itself(numbers_source):
    x = features(0)
    found = proxies(numbers_source(), x, x)
    assert found["kind"] == "agreement on target inputs"
    assert found["agreement"].value == 1 and found["agreement"].low < 1  # 30 rows are no proof
    assert found["divergence"].value == 0


def test_agreement_is_a_count_and_divergence_is_scipys(numbers_source):
    source, x, y = numbers_source(), features(0), features(1)
    found = proxies(source, x, y)
    p, q = (source.head(t).softmax(1).detach().double().numpy() for t in (x, y))
    same = sum(a == b for a, b in zip(p.argmax(1), q.argmax(1), strict=True))
    assert 0 < same < 30 and found["agreement"].value == pytest.approx(same / 30)
    by_row = entropy(p, q, axis=1)
    assert found["divergence"].value == pytest.approx(by_row.mean(), rel=1e-4)
    assert found["divergence"].low < by_row.mean() < found["divergence"].high


def test_rows_of_one_group_count_as_one(numbers_source):
    source, x, y = numbers_source(), features(0), features(1)
    rows = proxies(source, x.repeat(4, 1), y.repeat(4, 1))
    groups = [f"g{i}" for i in range(30)] * 4
    grouped = proxies(source, x.repeat(4, 1), y.repeat(4, 1), groups)
    for name in ("agreement", "divergence"):
        a, b = rows[name], grouped[name]
        assert b.high - b.low > 1.5 * (a.high - a.low)


@pytest.mark.parametrize("change", ["headless", "regression"])
def test_without_a_head_of_classes_features_are_compared(numbers_source, change):
    source = numbers_source()
    if change == "headless":
        source.head = None
    else:
        source.task = "regression"
    found = proxies(source, features(0), features(1))
    assert found == {
        "kind": "features on target inputs",
        "cka": linear_cka(features(0), features(1)),
    }


def test_cka_knows_rotation_and_scale_and_tells_others_apart():
    x = features(0, n=400)
    turn = torch.linalg.qr(features(2, 6, 6)).Q
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, features(1, n=400)) < 0.1
    centred = [t.double() - t.double().mean(0) for t in (x, features(1, n=400))]
    k, m = (c @ c.T for c in centred)
    by_kernel = (k * m).sum() / (k.square().sum() * m.square().sum()).sqrt()
    assert linear_cka(x, features(1, n=400)) == pytest.approx(float(by_kernel))
    assert linear_cka(x, torch.ones(400, 2)) is None
