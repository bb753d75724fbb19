"""The verdict: its formula by hand, its words, and its error rates by simulation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats

from regraft.errors import DataError
from regraft.evidence.intervals import at_weights
from regraft.evidence.scoring import Predictions, gain
from regraft.evidence.verdict import decide, row_variance, rows_to_settle
from regraft.metrics import accuracy, log_loss, macro_f1, mae
from regraft.runs.estimates import Estimate


def arm(right, groups=None):
    """Rows of true class 1, right where ``right`` is 1."""
    right = np.asarray(right, dtype=int)
    ids = tuple(str(i) for i in range(len(right)))
    return Predictions(ids, np.ones(len(right), int), np.eye(2)[right], groups)


def numbers(errors):
    errors = np.asarray(errors, dtype=float)
    ids = tuple(str(i) for i in range(len(errors)))
    return Predictions(ids, np.zeros((len(errors), 1)), errors[:, None])


def test_the_formula_by_hand():  # absolute errors; gain = scratch − fine-tuned
    fine = [numbers([1, 2, 1, 2]), numbers([1, 1, 1, 1]), numbers([2, 2, 1, 1])]
    scratch = [numbers([3, 4, 2, 3]), numbers([4, 2, 2, 2]), numbers([3, 3, 3, 3])]
    each = np.array([[2, 2, 1, 1], [3, 1, 1, 1], [1, 1, 2, 2]], dtype=float)
    rows = each.mean(0).var(ddof=1) / 4
    twice = (np.mean([r.var(ddof=1) / 4 for r in each]) - rows) / 2  # the noise that both variances hold
    rows -= twice / 2  # k = (3 − 2) / (3 − 1)

    a, b = np.var([1.5, 1, 1.5], ddof=1) / 3, np.var([3, 2.5, 3], ddof=1) / 3
    welch = stats.ttest_ind([1.5, 1, 1.5], [3, 2.5, 3], equal_var=False).df
    half = np.sqrt(stats.t.ppf(0.975, welch) ** 2 * (a + b) + stats.t.ppf(0.975, 3) ** 2 * rows)
    found = decide(mae, list(zip(fine, scratch, strict=True)))
    assert found.gain is not None and found.seeds == 3
    assert found.gain.value == pytest.approx(each.mean())
    assert (found.gain.low, found.gain.high) == pytest.approx((1.5 - half, 1.5 + half))
    assert found.words == "transfer helps"

    between = each.mean(1).var(ddof=1) / 3
    half = np.sqrt(stats.t.ppf(0.975, 2) ** 2 * between + stats.t.ppf(0.975, 3) ** 2 * rows)
    paired = decide(mae, list(zip(fine, scratch, strict=True)), paired=True).gain
    assert (paired.low, paired.high) == pytest.approx((1.5 - half, 1.5 + half))
    swapped = decide(mae, list(zip(scratch, fine, strict=True)))
    assert swapped.words == "transfer hurts" and swapped.gain.value == pytest.approx(-1.5)


def test_no_discordant_rows_is_no_certainty():
    same = [(arm([1] * 50), arm([1] * 50))] * 3
    found = decide(accuracy, same)
    assert found.words == "not decided" and found.gain.low < 0 < found.gain.high
    # Agresti and Min: pseudo-rows +1 and −1 of half a row and one 0 give variance (1/52)/52
    assert row_variance(accuracy, same) == pytest.approx(1 / 52**2)
    every = decide(accuracy, [(arm([1] * 50), arm([0] * 50))] * 3)
    assert every.words == "transfer helps" and 0.8 < every.gain.low < every.gain.high == 1
    few = decide(macro_f1, [(arm([1, 1]), arm([0, 0]))] * 3)
    assert few.words == "not decided"  # two rows prove nothing, although nothing varies


def test_groups_count_as_one_row():
    rng = np.random.default_rng(0)
    right = [rng.integers(0, 2, 40) for _ in range(3)]
    once = [(arm(r), arm([0] * 40)) for r in right]
    groups = tuple(f"g{i // 5}" for i in range(200))
    copies = [(arm(np.repeat(r, 5), groups), arm([0] * 200, groups)) for r in right]
    for metric in (accuracy, log_loss):
        assert row_variance(metric, copies) == pytest.approx(row_variance(metric, once))
    grouped = row_variance(macro_f1, copies)
    assert grouped == pytest.approx(row_variance(macro_f1, once), rel=0.1)


def test_bootstrap_variance_is_that_of_a_mean():  # the general path against the exact one
    rng = np.random.default_rng(0)
    pairs = [(numbers(rng.normal(size=60)), numbers(2 * rng.normal(size=60))) for _ in range(3)]

    class Whole:
        bounded = False
        title, higher_is_better, proportion = "mae", False, False
        at_weights = staticmethod(partial(at_weights, mae))

    assert row_variance(Whole, pairs) == pytest.approx(row_variance(mae, pairs), rel=0.1)


def test_not_measured():
    pair = (arm([1, 1, 1, 0]), arm([0, 0, 1, 0]))
    nothing = decide(accuracy, [])
    assert nothing.words == "not measured" and nothing.gain is None
    assert "--controls scratch" in nothing.why
    one = decide(accuracy, [pair])
    assert one.words == "not measured" and one.gain == gain(accuracy, *pair)
    assert "--seeds 3" in one.why and "these two models, not the method" in one.why
    two = decide(accuracy, [pair, pair])
    assert two.words == "not measured" and two.gain.value == 0.5
    assert "these four models, not the method" in two.why
    row = decide(accuracy, [(arm([1]), arm([0]))] * 3)
    assert row.words == "not measured" and "2 test rows" in row.why
    patient = [(arm([1, 1], ("p", "p")), arm([0, 0], ("p", "p")))] * 3
    assert "2 groups" in decide(accuracy, patient).why


def test_other_rows_are_refused():
    with pytest.raises(DataError, match="rows differ"):
        decide(accuracy, [(arm([1, 0]), arm([1, 0])), (arm([1, 0, 1]), arm([1, 0, 1]))])


def test_equal_models_have_no_gain_and_no_interval():
    found = decide(mae, [(numbers([1, 2]), numbers([1, 2]))] * 3)
    assert found.gain.value == 0 and not found.gain.has_interval
    assert found.words == "not decided" and "no interval" in found.why
    assert rows_to_settle(found.gain) is None


def test_what_would_settle_it():
    assert rows_to_settle(Estimate(0.1, -0.1, 0.3, 100)) == 300  # 100 · (0.2 / 0.1)² − 100
    assert rows_to_settle(Estimate(0.01, -0.19, 0.21, 100)) is None  # beyond 20 n
    assert rows_to_settle(Estimate(0.0, -0.2, 0.2, 100)) is None
    assert rows_to_settle(Estimate(0.3, 0.2, 0.4, 100)) == 0
    # a fifth of the variance is the seeds': 100 · (0.8 · 0.04 / (0.01 − 0.2 · 0.04) − 1)
    assert rows_to_settle(Estimate(0.1, -0.1, 0.3, 100), seed_share=0.2) == 1500
    assert rows_to_settle(Estimate(0.1, -0.1, 0.3, 100), seed_share=0.5) is None  # rows cannot buy it


def test_the_advice_names_what_can_be_bought():
    rng = np.random.default_rng(3)
    seeds = [(arm([1] * k + [0] * (400 - k)), arm([0] * 400)) for k in (0, 40, 200)]
    assert "more seeds" in decide(accuracy, seeds).why
    right = (rng.random(60) < 0.6).astype(int)
    rows = [(arm(right), arm(1 - right))] * 3
    found = decide(accuracy, rows)
    more = rows_to_settle(found.gain)
    assert f"{more} more test rows settle it in half of all cases: plan for {2 * more}" in found.why
    assert f"a gain above {found.gain.high:.3f} or a loss beyond {-found.gain.low:.3f} is ruled out" in found.why


# ------------------------------------------------------------ error rates


def chance(difficulty, shift):
    return 1 / (1 + np.exp(-(difficulty + shift)))


def simulate(rng, seeds, rows, effect, spread):
    """Accuracy of S seeds on heterogeneous rows: logit = difficulty + seed + effect of a row."""
    difficulty = rng.normal(0.8, 1.5, rows)
    helped = effect * (1 + rng.normal(0, 1, rows))  # transfer helps some rows, hurts others
    pairs = []
    for _ in range(seeds):
        fine = chance(difficulty, helped + rng.normal(0, spread))
        scratch = chance(difficulty, rng.normal(0, spread))
        pairs.append((arm(rng.random(rows) < fine), arm(rng.random(rows) < scratch)))
    return pairs


def expected(effect, spread):
    """The gain of :func:`simulate` over all seeds and rows."""
    rng = np.random.default_rng(99)
    n = 4_000_000
    difficulty, seed = rng.normal(0.8, 1.5, n), rng.normal(0, spread, n)
    helped = effect * (1 + rng.normal(0, 1, n))
    return float(np.mean(chance(difficulty, helped + seed) - chance(difficulty, seed)))


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_false_verdicts_are_rare(spread):
    rng = np.random.default_rng(20)
    words = [decide(accuracy, simulate(rng, 5, 200, 0.0, spread)).words for _ in range(200)]
    wrong = sum(w in ("transfer helps", "transfer hurts") for w in words)
    print(f"spread {spread}: {wrong} of 200 false verdicts")
    assert wrong <= 0.08 * 200
    lower = stats.beta.ppf(0.025, wrong, 200 - wrong + 1) if wrong else 0.0  # Clopper–Pearson
    assert lower <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
def test_intervals_cover_the_true_gain(seeds, spread):
    rng = np.random.default_rng(seeds)
    truth = expected(0.8, spread)
    found = [decide(accuracy, simulate(rng, seeds, 150, 0.8, spread)).gain for _ in range(400)]
    covered = np.mean([g.low <= truth <= g.high for g in found])
    width = np.mean([g.high - g.low for g in found])
    print(f"{seeds} seeds, spread {spread}: gain {truth:.3f}, covered {covered:.4f}, {width:.3f}")
    assert covered >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_for_errors_too(seeds):  # MAE: seed, row and row-by-seed effects
    rng = np.random.default_rng(10 + seeds)
    found = []
    for _ in range(400):
        row = rng.exponential(1.0, 120)
        pairs = []
        for _ in range(seeds):
            noise = rng.exponential(0.5, (2, 120))
            # seed effects are positive, so that an absolute error is what it is meant to be
            shift = rng.uniform(0, 0.3, 2)
            fine = numbers(row + shift[0] + noise[0])
            pairs.append((fine, numbers(1.3 * row + shift[1] + noise[1])))
        found.append(decide(mae, pairs).gain)
    covered = np.mean([g.low <= 0.3 <= g.high for g in found])
    print(f"{seeds} seeds, mae: covered {covered:.4f}")
    assert covered >= 0.93


def head(rng, x, y, steps=40, rate=0.5):
    """A softmax head [D, C] after a few steps of SGD from a random start: what seeds differ in."""
    w = rng.normal(0, 0.3, (x.shape[1], 3))
    for _ in range(steps):
        rows = rng.integers(0, len(x), 8)
        z = x[rows] @ w
        p = np.exp(z - z.max(1, keepdims=True))
        p = p / p.sum(1, keepdims=True) - np.eye(3)[y[rows]]
        w -= rate / len(rows) * x[rows].T @ p
    return w


@pytest.mark.slow
def test_equal_arms_of_small_heads_rarely_get_a_verdict():
    """200 pairs of 5-seed arms that differ in their seeds alone; new data for every pair."""
    rng = np.random.default_rng(7)
    words = []
    for _ in range(200):
        centres = rng.normal(0, 0.8, (3, 10))
        y, y_test = rng.integers(0, 3, 60), rng.integers(0, 3, 250)
        x, x_test = (centres[c] + rng.normal(size=(len(c), 10)) for c in (y, y_test))
        arms = [[arm((x_test @ head(rng, x, y)).argmax(1) == y_test) for _ in range(5)] for _ in "ab"]
        words.append(decide(accuracy, list(zip(*arms, strict=True))).words)
    wrong = sum(w in ("transfer helps", "transfer hurts") for w in words)
    print(f"small heads: {wrong} of 200 false verdicts")
    assert wrong <= 0.08 * 200
    lower = stats.beta.ppf(0.025, wrong, 200 - wrong + 1) if wrong else 0.0  # Clopper–Pearson
    assert lower <= 0.05
