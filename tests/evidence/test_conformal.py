"""Sets hold what their law says: coverage against scipy's Beta, bounds against sorting by hand."""

import numpy as np
import pytest
from scipy import stats

from regraft.evidence.calibration import rescale
from regraft.evidence.conformal import SLACK, bounds, covered, fit_rule, law_of_coverage, least_rows, measure_sets
from regraft.evidence.conformal import members as members_of
from regraft.evidence.scoring import Predictions
from regraft.tasks.classification import Classification
from regraft.tasks.multilabel import MultiLabel
from regraft.tasks.regression import Regression

CLASSES = Classification().make([(c,) for c in "abcd"], ("label",))
NUMBERS = Regression().make([("0", "0"), ("2", "20")], ("x", "y"))  # standard deviations 1 and 10


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def of_classes(n, rng, groups=None):
    """Rows whose class is drawn from other probabilities than the model's: it is no calibrated model."""
    z = rng.normal(0, 1.5, (n, 4))
    truth = (softmax(z).cumsum(1) < rng.random((n, 1))).sum(1).clip(0, 3)
    scores = softmax(2 * z + rng.normal(0, 0.5, z.shape))
    return Predictions(tuple(f"r{i}" for i in range(n)), truth, scores, groups)


def of_numbers(n, rng):
    truth = rng.normal(0, [1, 10], (n, 2))
    return Predictions(tuple(f"r{i}" for i in range(n)), truth, truth + rng.standard_t(4, (n, 2)) * [0.3, 2])


@pytest.mark.parametrize(
    ("task", "draw", "temperature"),
    [(CLASSES, of_classes, 1.7), (NUMBERS, of_numbers, None)],
    ids=["sets", "intervals"],
)
def test_coverage_over_many_splits_follows_the_beta_law(task, draw, temperature):
    rng = np.random.default_rng(0)
    new = draw(20_000, rng)
    shown = [covered(fit_rule(task, draw(40, rng), 0.9, temperature), new).mean() for _ in range(50)]
    law = stats.beta(37, 4)  # k = ⌈41 · 0.9⌉ = 37 of 40
    assert stats.kstest(shown, law.cdf).pvalue > 0.05
    assert np.mean(shown) == pytest.approx(37 / 41, abs=0.015)  # two standard errors of the mean
    stated = law_of_coverage(40, 0.9)
    assert (stated.low, stated.value, stated.high) == pytest.approx((law.ppf(0.025), 37 / 41, law.ppf(0.975)))
    assert np.mean([stated.low <= s <= stated.high for s in shown]) >= 0.86  # 95 % less three standard errors


def test_the_bound_is_the_kth_smallest_score():
    rows = of_classes(19, np.random.default_rng(1))
    rule = fit_rule(CLASSES, rows, 0.9, 2.0)
    own = np.sort(rescale(rows.scores, 2.0)[np.arange(19), rows.truth])
    assert rule.least_probability == pytest.approx(own[1], rel=2 * SLACK)  # k = 18 of 19: the second least
    assert rule.least_probability < own[1] and covered(rule, rows).sum() == 18
    sets = members_of(rule, rows.scores)
    assert (sets == (rescale(rows.scores, 2.0) >= rule.least_probability)).all()
    # probabilities that have the temperature already give the same sets
    assert (members_of(rule, rescale(rows.scores, 2.0), divided_by=2.0) == sets).all()


def test_intervals_hold_all_numbers_of_a_row_together():
    rows = of_numbers(29, np.random.default_rng(2))
    rule = fit_rule(NUMBERS, rows, 0.9, None)
    q = np.sort((abs(rows.truth - rows.scores) / [1, 10]).max(1))[26]  # k = 27 of 29
    assert rule.half_widths == pytest.approx([q, 10 * q], rel=2 * SLACK)
    low, high = bounds(rule, rows.scores)
    np.testing.assert_allclose((low + high) / 2, rows.scores)
    assert covered(rule, rows).sum() == 27


@pytest.mark.parametrize(("coverage", "least"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.8, 4), (2 / 3, 2)])
def test_too_few_rows_give_no_sets_and_the_least_number(coverage, least):
    rng = np.random.default_rng(3)
    assert least_rows(coverage) == least
    assert fit_rule(CLASSES, of_classes(least, rng), coverage, 1.0).exists
    few = measure_sets(CLASSES, of_classes(least - 1, rng), of_classes(20, rng), coverage, temperature=1.0)
    assert not few.exists and few.law is None and few.test is None
    assert f"they need {least} held-out rows, and there are {least - 1}" in few.refusal
    assert not measure_sets(CLASSES, None, of_classes(20, rng), coverage).exists


def test_figures_of_test_are_counted():
    rng = np.random.default_rng(4)
    held_out, test = of_classes(60, rng), of_classes(200, rng)
    test.scores[:20] = 0.25  # the model is unsure of these rows
    found = measure_sets(CLASSES, held_out, test, 0.6, temperature=1.0)
    sets = [{c for c, p in enumerate(row) if p >= found.least_probability} for row in test.scores]
    assert found.test.value == np.mean([y in s for s, y in zip(sets, test.truth, strict=True)])
    assert found.test.low == pytest.approx(
        stats.binomtest(round(found.test.value * 200), 200).proportion_ci(method="wilson").low
    )
    assert found.size.value == pytest.approx(np.mean([len(s) for s in sets]))
    assert found.size.low < found.size.value < found.size.high
    assert found.empty.value == np.mean([not s for s in sets]) > 0
    assert not found.grouped and found.law == law_of_coverage(60, 0.6)


def test_rows_in_groups_widen_the_law():
    rng = np.random.default_rng(5)
    rows = of_classes(30, rng)
    four = [np.repeat(a, 4, axis=0) for a in (rows.truth, rows.scores)]  # each row four times, in a group of its own
    grouped = Predictions(tuple(map(str, range(120))), *four, tuple(f"g{i // 4}" for i in range(120)))
    found = measure_sets(CLASSES, grouped, of_classes(50, rng), 0.9, temperature=1.0)
    alone = measure_sets(CLASSES, rows, of_classes(50, rng), 0.9, temperature=1.0)
    assert found.grouped and not alone.grouped
    width, plain = (e.high - e.low for e in (found.law, law_of_coverage(120, 0.9)))
    assert width > 1.7 * plain and width == pytest.approx(alone.law.high - alone.law.low, rel=0.25)


def test_several_labels_have_no_sets():
    from regraft.evidence.conformal import has_sets

    task = MultiLabel().make([("a",), ("b",), ("a;b",)], ("labels",))
    assert has_sets(CLASSES) and has_sets(NUMBERS) and not has_sets(task)
