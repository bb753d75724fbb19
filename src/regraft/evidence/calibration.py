"""Calibration: do a model's probabilities match its accuracy, and does a temperature improve them?

    p_T(c | x) ∝ p(c | x)^(1/T),   T = argmin over val of −Σ log p_T(y | x) + |log T| / 0.2

Val fits this one number, or out-of-fold rows where there is no val. It changes no answer, only the probabilities.
Guo, Pleiss, Sun and Weinberger 2017, 1706.04599, section 4.2. The second term is a Laplace prior, which is ours: T
stays 1 until these rows show otherwise. Without it a few rows that are all right send T to its bound. Every run
reports the temperature; ``Predictor.calibrated`` and ``predict --calibrated`` apply it unless test shows that it made
the log loss worse.

The ECE of few rows is far above 0 for a calibrated model too. The figures to compare it with come from labels
drawn from the model's own probabilities (Bröcker and Smith 2007, Weather and Forecasting 22:651).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from ..plugins import module
from ..runs.estimates import Estimate
from ..runs.result_parts import Bin, Calibration, CalibrationFigures, IfCalibrated, Reliability
from .scoring import Predictions, estimates, gain

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray
    from ..metrics import Metric
    from ..tasks import Task


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # the range that fit_temperature searches

PRIOR_SCALE = 0.2  # of |log T|; of eight priors the one with the least harm and nearly the best gain, docs/log.md

DRAWS = 2_000  # sets of labels that a calibrated model is simulated with


def rescale(scores: FloatArray, temperature: float) -> FloatArray:
    """Return probabilities [N, C] at a temperature: softmax(log p / T)."""
    logits = np.log(np.clip(scores, np.finfo(np.float64).tiny, 1.0)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return result


def fit_temperature(rows: Predictions) -> float:
    """Return the most probable temperature given these rows and the prior."""
    from scipy.optimize import minimize_scalar

    own_class = np.arange(len(rows)), rows.truth

    def loss(log_t: float) -> float:
        p = rescale(rows.scores, float(np.exp(log_t)))[own_class]
        return float(-np.log(np.clip(p, np.finfo(np.float64).tiny, 1.0)).sum()) + abs(log_t) / PRIOR_SCALE

    # a grid first, because the sum may have a second minimum; 0 is on the grid, where the prior has its edge
    low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    grid = np.linspace(low, high, 61)
    best = grid[int(np.argmin([loss(x) for x in grid]))]
    step = grid[1] - grid[0]
    found = minimize_scalar(loss, bounds=(max(best - step, low), min(best + step, high)), method="bounded")
    return float(np.exp(min((0.0, best, float(found.x)), key=loss)))


def ece_if_calibrated(rows: Predictions, seed: int = 0) -> Estimate:
    """Return the ECE of these rows if their probabilities were right: the mean, and the middle 95 % of draws."""
    ece = module("metrics", "ece")
    confidence, _, bins = ece.binned(rows.truth, rows.scores)
    rng = np.random.default_rng(seed)
    values = np.empty(DRAWS)
    for i in range(DRAWS):
        right = rng.random(len(rows)) < confidence
        gaps = np.bincount(bins, weights=right - confidence, minlength=ece.BINS)
        values[i] = np.abs(gaps).sum() / len(rows)
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(rows))


def measure_calibration(
    task: Task, held_out: Predictions, test: Predictions, by: Literal["val", "cross-validation"] = "val"
) -> Calibration:
    """Return the figures of test before and after the temperature fitted on held-out rows.

    By cross-validation each of these rows is scored by a fold's model, which has seen fewer rows than the model.
    """
    temperature = fit_temperature(held_out)
    after = replace(test, scores=rescale(test.scores, temperature))
    chosen = {name: cast("Metric", module("metrics", name)) for name in ("ece", "log_loss")}
    return Calibration(
        temperature=temperature,
        fitted_on=len(held_out),
        fitted_by=by,
        before=CalibrationFigures(**estimates(task, chosen, test)),
        after=CalibrationFigures(**estimates(task, chosen, after)),
        gain=CalibrationFigures(**{name: gain(metric, after, test) for name, metric in chosen.items()}),
        if_calibrated=IfCalibrated(before=ece_if_calibrated(test), after=ece_if_calibrated(after)),
        reliability=Reliability(before=reliability(test), after=reliability(after)),
    )


def reliability(rows: Predictions) -> list[Bin]:
    """Return mean confidence, accuracy and rows of each bin of confidence that has rows."""
    confidence, right, bins = module("metrics", "ece").binned(rows.truth, rows.scores)
    return [
        Bin(confidence=float(confidence[own].mean()), accuracy=float(right[own].mean()), rows=int(own.sum()))
        for b in np.unique(bins)
        for own in [bins == b]
    ]
