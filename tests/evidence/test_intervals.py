"""Intervals against published examples, scipy, and the cases that break others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from regraft.evidence.intervals import (
    bootstrap,
    bootstrap_difference,
    effective_rows,
    group_codes,
    newcombe_paired,
    resample,
    wilson,
)
from regraft.metrics import balanced_accuracy, mae


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_one(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (7, 9), (1000, 1000)])
def test_wilson_is_scipys_and_never_empty(successes, n):
    reference = stats.binomtest(successes, n).proportion_ci(method="wilson")
    low, high = wilson(successes, n)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= low < high <= 1
    assert wilson(0, 0) == (0.0, 1.0)


def test_newcombe_is_the_published_one():
    # airway reactivity before and after transplantation, 21 children (Bentur et al. 2009), in
    # Fagerland, Lydersen and Laake 2014, Stat. Med. 33:2850: −0.286 [−0.507, −0.026]
    low, high = newcombe_paired(a_only=1, b_only=7, both=1, neither=12)
    assert (low, high) == pytest.approx((-0.507, -0.026), abs=6e-4)
    swapped = newcombe_paired(a_only=7, b_only=1, both=1, neither=12)
    assert swapped == pytest.approx((-high, -low))


@pytest.mark.parametrize("cells", [(0, 0, 50, 0), (0, 0, 0, 50), (0, 0, 40, 10), (0, 0, 1, 0)])
def test_no_discordant_rows_is_not_zero_to_zero(cells):
    low, high = newcombe_paired(*cells)
    assert -1 <= low < 0 < high <= 1


def test_newcombe_all_discordant_and_empty():
    low, high = newcombe_paired(30, 0, 0, 0)
    assert 0.7 < low < 1 and high == 1
    assert newcombe_paired(0, 0, 0, 0) == (-1.0, 1.0)


def test_newcombe_covers():  # 95 % nominal, paired binary rows with a true difference of 0.1
    rng = np.random.default_rng(0)
    tables = rng.multinomial(60, [0.2, 0.1, 0.5, 0.2], size=2000)
    hits = [low <= 0.1 <= high for low, high in (newcombe_paired(*t) for t in tables.tolist())]
    assert 0.935 < np.mean(hits) < 0.985


def test_effective_rows():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, 400).astype(float)
    assert effective_rows(rows, None) == 400
    copies = np.repeat(rows[:100], 4)  # four copies of each row are worth about one
    worth = effective_rows(copies, [f"g{i // 4}" for i in range(400)])
    assert 90 < worth <= 100
    assert effective_rows(np.ones(400), [f"g{i // 4}" for i in range(400)]) == 100
    assert effective_rows(rows, ["one"] * 400) == 1
    assert effective_rows(rows, [str(i) for i in range(400)]) == 400


def test_a_row_without_group_is_its_own():
    assert group_codes(["a", None, "a", None], 4).tolist() == [0, 1, 0, 2]
    with pytest.raises(ValueError, match="2 groups for 3 rows"):
        group_codes(["a", "b"], 3)


def test_bootstrap_is_scipys_percentile():
    rng = np.random.default_rng(1)
    truth, scores = rng.normal(size=(80, 1)), rng.normal(size=(80, 1))
    ours = bootstrap(mae, truth, scores, resamples=20_000)
    reference = stats.bootstrap(
        (np.abs(truth - scores)[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    width = reference.high - reference.low
    assert ours.low == pytest.approx(reference.low, abs=0.04 * width)
    assert ours.high == pytest.approx(reference.high, abs=0.04 * width)
    assert ours.value == pytest.approx(np.abs(truth - scores).mean())


def test_differences_share_resamples():  # equal models differ by 0 in every resample
    rng = np.random.default_rng(1)
    truth, scores = rng.normal(size=(50, 1)), rng.normal(size=(50, 1))
    same = bootstrap_difference(mae, truth, scores, scores, resamples=200)
    assert same.value == 0 and not same.has_interval
    shifted = bootstrap_difference(mae, truth, truth + 2, truth + 1, resamples=200)
    assert shifted.value == pytest.approx(1) and not shifted.has_interval


def test_whole_groups_are_drawn():
    groups = ["a", "a", "b", None, "b", "b"]
    weights = resample(lambda w: w, 6, groups=groups, resamples=300)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all() and (weights[:, 2] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()  # three groups drawn each time


def test_chunks_do_not_lose_resamples(monkeypatch):
    monkeypatch.setattr("regraft.evidence.intervals.MAX_CHUNK_WEIGHTS", 70)
    weights = resample(lambda w: w, 10, resamples=23)
    assert weights.shape == (23, 10) and (weights.sum(axis=1) == 10).all()


@pytest.mark.parametrize("right", [0, 1])
def test_rows_that_are_alike_carry_no_interval(right):
    for n in (1, 5):
        truth = np.full(n, right)
        scores = np.tile([0.2, 0.8], (n, 1))
        found = bootstrap(balanced_accuracy, truth, scores, resamples=100)
        assert found.value == right and not found.has_interval
