"""Looks at the verdict: the level of each, and what ends them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from regraft.evidence.looks import LOOKS, level_of_look, look
from regraft.evidence.scoring import Predictions
from regraft.evidence.verdict import decide, row_variance
from regraft.metrics import accuracy


def arm(right, groups=None):
    right = np.asarray(right, dtype=int)
    return Predictions(tuple(map(str, range(len(right)))), np.ones(len(right), int), np.eye(2)[right], groups)


def test_an_interval_is_wider_than_that_of_one_look():
    """By hand: each arm's accuracy and the rows, with t of the second look."""
    rng = np.random.default_rng(1)
    right = [(rng.random((2, 60)) < [[0.8], [0.7]]).astype(int) for _ in range(4)]
    pairs = [(arm(a), arm(b)) for a, b in right]
    found = look(accuracy, pairs).verdict
    each = np.array(right).mean(2)  # [S, 2]
    a, b = each.var(0, ddof=1) / 4
    freedom = stats.ttest_ind(*each.T, equal_var=False).df
    whole = row_variance(accuracy, pairs)
    shared = (np.mean([row_variance(accuracy, [p]) for p in pairs]) - whole) / 3
    assert level_of_look(4) == 0.996  # α of the second look: 2 · 0.002
    upper = (1 + 0.996) / 2
    rows = stats.t.ppf(upper, 59) ** 2 * (whole - 2 / 3 * shared)
    half = np.sqrt(stats.t.ppf(upper, freedom) ** 2 * (a + b) + rows)
    assert (found.gain.low, found.gain.high) == pytest.approx((found.gain.value - half, found.gain.value + half))
    once = decide(accuracy, pairs).gain
    assert found.gain.value == once.value and found.gain.low < once.low and found.gain.high > once.high
    assert f"4 seeds and 60 test rows, looked up to {LOOKS} times" in found.why


def test_a_clear_gain_ends_at_the_first_look():
    better, worse = [1] * 90 + [0] * 10, [1] * 50 + [0] * 50
    found = look(accuracy, [(arm(better), arm(worse))] * 3)
    assert found.ends == "decided" and found.verdict.words == "transfer helps" and found.verdict.seeds == 3
    lost = look(accuracy, [(arm(worse), arm(better))] * 3)
    assert lost.ends == "decided" and lost.verdict.words == "transfer hurts"


def test_futile_is_what_no_seed_can_mend():
    same = [1] * 60 + [0] * 40
    found = look(accuracy, [(arm(same), arm(same))] * 3)
    assert found.ends == "futile" and found.verdict.words == "not decided"
    assert "whatever the number of seeds" in found.verdict.why
    few = look(accuracy, [(arm([1]), arm([0]))] * 3)
    assert few.ends == "futile" and few.verdict.words == "not measured"


def apart(seeds):
    """Seeds of the fit that differ by 20 rows of 200, so that not the rows leave the verdict open."""
    return [(arm([1] * (130 + 20 * (s % 3)) + [0] * (70 - 20 * (s % 3))), arm([1] * 120 + [0] * 80)) for s in seeds]


def test_seeds_that_differ_call_for_one_more_until_the_last():
    found = look(accuracy, apart(range(3)))
    assert found.ends == "" and found.verdict.words == "not decided"
    turned = [apart([s])[0] if s % 2 else apart([s])[0][::-1] for s in range(10)]
    last = look(accuracy, turned)
    assert last.ends == "last" and last.verdict.words == "not decided"
    for seeds in (2, 11):
        with pytest.raises(ValueError, match=f"not {seeds}"):
            look(accuracy, apart(range(seeds)))


@pytest.mark.slow
def test_false_verdicts_are_rare_over_all_looks():
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(150):
        difficulty = rng.normal(0.8, 1.5, 300)
        shift = rng.normal(0, 0.3, (10, 2, 1))
        right = (rng.random((10, 2, 300)) < 1 / (1 + np.exp(-difficulty - shift))).astype(int)
        pairs = [(arm(a), arm(b)) for a, b in right]
        seen = next(s for s in (look(accuracy, pairs[:k]) for k in range(3, 11)) if s.ends)
        wrong += seen.ends == "decided"
    print(f"{wrong} of 150 false verdicts")
    assert wrong <= 9  # 6 %; at 95 % for each look they are 12 %
