"""A temperature found again, an unchanged answer, and bins that hold every row."""

import numpy as np
import pytest

from regraft.evidence.calibration import fit_temperature, measure_calibration, reliability, rescale
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
    assert found.before.ece.n == 1500


def test_reliability_holds_every_row_once():
    test = rows(500, 3.0)
    bins = reliability(test)
    assert sum(b.rows for b in bins) == 500
    gap = sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / 500
    assert gap == pytest.approx(value_of(ece, test.truth, test.scores))
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)
