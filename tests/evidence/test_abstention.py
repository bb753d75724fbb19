"""A threshold holds its error, is proved by exact bounds, and is refused where rows cannot prove it."""

import numpy as np
import pytest
from scipy import stats

from regraft.errors import PlanError
from regraft.evidence.abstention import (
    accepts,
    allowed_errors,
    find_threshold,
    least_accepted,
    measure_abstention,
    risk_curve,
)
from regraft.evidence.calibration import rescale
from regraft.evidence.scoring import Predictions
from regraft.plan.read import read_plan


def upper(errors, n):
    """Clopper and Pearson's one-sided upper bound by scipy."""
    return stats.binomtest(errors, n, alternative="less").proportion_ci(0.95, method="exact").high


@pytest.mark.parametrize("most", [0.01, 0.05, 0.2])
def test_the_allowed_errors_are_those_of_clopper_and_pearson(most):
    n = np.array([1, 10, 58, 59, 92, 93, 299, 400])
    for rows, errors in zip(n, allowed_errors(n, most), strict=True):
        assert errors < 0 or upper(int(errors), int(rows)) <= most
        assert upper(int(errors) + 1, int(rows)) > most
    assert least_accepted(most) == {0.01: 299, 0.05: 59, 0.2: 14}[most]


def drawn(rng, n):
    """Confidences, and wrong answers at a rate that rises from 0 at 0.85 to 0.42 at 0.5."""
    confidence = rng.uniform(0.5, 1, n)
    return confidence, rng.random(n) < 1.2 * (0.85 - confidence)


def test_the_error_above_the_threshold_is_small_in_95_of_100_runs():
    rng, most, draws = np.random.default_rng(0), 0.1, 400
    found = [find_threshold(*drawn(rng, 300), most) for _ in range(draws)]
    # the mean over c from λ to 1 of the rate of wrong answers; λ = 0 accepts as much as 0.5
    low = np.array([max(f[0], 0.5) for f in found if f])
    true = 0.6 * np.clip(0.85 - low, 0, 1) ** 2 / (1 - low)
    broken = (true > most).sum() / draws
    assert broken <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert len(true) > 0.9 * draws and np.mean(true) > 0.6 * most  # it gives away little


def test_the_threshold_is_the_lowest_before_the_first_failure():
    confidence = np.linspace(0.99, 0.5, 200)
    wrong = np.zeros(200, bool)
    wrong[[100, 101, 102]] = True
    threshold, m = find_threshold(confidence, wrong, 0.05)
    assert m == 93 and threshold == confidence[93]  # 124 rows allow 2 errors, and have 3; 153 would allow them
    assert find_threshold(confidence, np.zeros(200, bool), 0.05) == (0.0, 200)
    wrong[:2] = True
    assert find_threshold(confidence, wrong, 0.05) is None
    equal = np.repeat([0.9, 0.6], 100)  # equal confidences are accepted together
    assert find_threshold(equal, np.arange(200) >= 150, 0.05) == (0.6, 100)
    assert find_threshold(np.ones(200), np.arange(200) >= 150, 0.05) is None


def rows(n, seed):
    rng = np.random.default_rng(seed)
    confidence, wrong = drawn(rng, n)
    return Predictions(tuple(f"r{i}" for i in range(n)), wrong.astype(int), np.stack([confidence, 1 - confidence], 1))


def test_figures_of_test_are_those_above_the_threshold():
    held_out, test = rows(400, 1), rows(250, 2)
    found = measure_abstention(held_out, test, 0.15, temperature=2.0)
    own = rescale(held_out.scores, 2.0).max(1) > found.threshold
    assert (found.accepted_rows, found.errors) == (own.sum(), held_out.truth[own].sum())
    assert upper(found.errors, found.accepted_rows) <= 0.15
    inside = accepts(found, test.scores)
    assert (accepts(found, rescale(test.scores, 2.0), divided_by=2.0) == inside).all()
    assert (found.accepted.value, found.accepted.n) == (inside.mean(), 250)
    assert (found.error.value, found.error.n) == (test.truth[inside].mean(), inside.sum())
    assert found.curve[-1].accepted == 1 and found.curve[-1].error == pytest.approx(test.truth.mean())
    assert len(found.curve) <= 50


def test_rows_that_cannot_prove_it_are_named():
    few = measure_abstention(rows(40, 1), rows(50, 2), 0.05, temperature=1.0)
    assert few.threshold is None and few.accepted is None and few.curve
    assert few.why == "59 accepted rows without an error would prove it, and there are 40 rows"
    wrong = measure_abstention(rows(80, 1), rows(50, 2), 0.05, temperature=1.0)
    assert "the most confident of 80 rows have too many errors" in wrong.why
    assert "one class a row" in measure_abstention(rows(80, 1), rows(50, 2), 0.05, temperature=None).why


def test_the_curve_takes_equal_confidences_together():
    points = risk_curve(np.array([0.9, 0.5, 0.9, 0.7]), np.array([True, True, False, False]))
    assert [(p.confidence, p.accepted, p.error) for p in points] == [
        (0.9, 0.5, 0.5),
        (0.7, 0.75, pytest.approx(1 / 3)),
        (0.5, 1.0, 0.5),
    ]


@pytest.mark.parametrize("most", [1e-17, 0.0, 0.5])
def test_an_error_that_no_number_of_rows_could_prove_is_refused(most):
    given = {"source.ref": "net", "data.path": "rows", "evaluate.max_error": most}
    with pytest.raises(PlanError, match=r"evaluate\.max_error"):
        read_plan(None, given)
