"""A temperature found again, an unchanged answer, and bins that hold every row."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from regraft.evidence.calibration import ece_if_calibrated, fit_temperature, measure_calibration, reliability, rescale
from regraft.evidence.intervals import value_of
from regraft.evidence.scoring import Predictions
from regraft.metrics import ece
from regraft.tasks.classification import Classification


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def rows(n, sharpness, seed=0):
    """Classes drawn from the logits' own probabilities; the scores say them ``sharpness`` as sharp."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (n, 4))
    truth = np.array([rng.choice(4, p=p) for p in softmax(z)])
    return Predictions(tuple(f"r{i}" for i in range(n)), truth, softmax(z * sharpness))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_how_sharp_the_scores_are(sharpness):
    assert fit_temperature(rows(4000, sharpness)) == pytest.approx(sharpness, rel=0.1)


def log_loss(rows, temperature=1.0):
    p = rescale(rows.scores, temperature)[np.arange(len(rows)), rows.truth]
    return -np.log(p).mean()


@pytest.mark.parametrize("n", [8, 12, 24, 68])
@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
def test_a_temperature_of_few_rows_does_no_harm_on_average(n, sharpness):
    test = rows(2000, sharpness, seed=99)
    change = [log_loss(test, fit_temperature(rows(n, sharpness, seed))) - log_loss(test) for seed in range(40)]
    assert np.mean(change) <= 0.01 and (sharpness == 1 or np.mean(change) < -0.01)


def test_rows_that_are_all_right_leave_the_temperature_near_1():
    right = Predictions(tuple("abcdefghij"), np.zeros(10, int), np.tile([0.8, 0.2], (10, 1)))
    assert fit_temperature(right) == pytest.approx(1)


def test_many_rows_outweigh_the_prior():
    many = rows(20000, 3.0)
    own = np.arange(len(many)), many.truth
    z = np.log(many.scores)

    def loss(t):
        return -(z / t - np.log(np.exp(z / t).sum(1, keepdims=True)))[own].mean()

    plain = minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    assert fit_temperature(many) == pytest.approx(plain, rel=0.002)


@pytest.mark.parametrize("n", [50, 500])
def test_a_calibrated_model_shows_the_ece_that_is_expected_of_it(n):
    draws = [rows(n, 1.0, seed) for seed in range(60)]
    shown = np.array([value_of(ece, r.truth, r.scores) for r in draws])
    expected = [ece_if_calibrated(r, seed=7) for r in draws]
    # the label is right with the probability of its class: the mean over draws agrees to four standard errors
    gap = shown - [e.value for e in expected]
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / np.sqrt(len(gap))
    inside = np.mean([e.low <= s <= e.high for e, s in zip(expected, shown, strict=True)])
    assert inside >= 0.85  # 95 % of 60, less three standard errors
    far = rows(n, 4.0)
    assert value_of(ece, far.truth, far.scores) > ece_if_calibrated(far).high


def test_a_temperature_divides_logits_and_changes_no_answer():
    z = np.random.default_rng(0).normal(0, 2, (50, 4))
    np.testing.assert_allclose(rescale(softmax(z), 2.5), softmax(z / 2.5))
    assert (rescale(softmax(z), 7).argmax(1) == z.argmax(1)).all()
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(rescale(sure, 2.0)).all()


def test_before_and_after_share_rows_and_the_fit_has_others():
    task = Classification().make([(c,) for c in "abcd"], ("label",))
    val, test = rows(2000, 3.0, seed=1), rows(1500, 3.0, seed=2)
    found = measure_calibration(task, val, test)
    assert found.temperature == fit_temperature(val) and found.fitted_on == 2000
    assert found.before.ece.value > 0.1 > 0.04 > found.after.ece.value
    assert found.gain.log_loss.low > 0
    assert found.before.ece.n == 1500 and not found.before.ece.has_interval
    assert found.if_calibrated.before.high < found.before.ece.value and not found.harmful
    assert found.after.ece.value < found.if_calibrated.after.high


def test_reliability_holds_every_row_once():
    test = rows(500, 3.0)
    bins = reliability(test)
    assert sum(b.rows for b in bins) == 500
    gap = sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / 500
    assert gap == pytest.approx(value_of(ece, test.truth, test.scores))
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)
