"""Calibration: do a model's probabilities match its accuracy, and does a temperature improve them?

    p_T(c | x) ∝ p(c | x)^(1/T),   T = argmin over val of −Σ log p_T(y | x)

Val fits this one number. It changes no answer, only the probabilities. Guo, Pleiss, Sun and Weinberger
2017, 1706.04599, section 4.2. Every run reports it; ``Predictor.calibrated`` and ``predict --calibrated``
apply it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..plugins import module
from ..runs.result_parts import Bin, Calibration, CalibrationFigures, Reliability
from .scoring import Predictions, estimates, gain

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray
    from ..metrics import Metric
    from ..tasks import Task


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # the range that fit_temperature searches


def rescale(scores: FloatArray, temperature: float) -> FloatArray:
    """Return probabilities [N, C] at a temperature: softmax(log p / T)."""
    logits = np.log(np.clip(scores, np.finfo(np.float64).tiny, 1.0)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return result


def fit_temperature(rows: Predictions) -> float:
    """Return the temperature with the least log loss on these rows."""
    from scipy.optimize import minimize_scalar

    own_class = np.arange(len(rows)), rows.truth

    def loss(log_t: float) -> float:
        p = rescale(rows.scores, float(np.exp(log_t)))[own_class]
        return float(-np.log(np.clip(p, np.finfo(np.float64).tiny, 1.0)).mean())

    minimum = minimize_scalar(loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded")
    return float(np.exp(minimum.x))


def measure_calibration(task: Task, val: Predictions, test: Predictions) -> Calibration:
    """Return the figures of test before and after the temperature fitted on val."""
    temperature = fit_temperature(val)
    after = replace(test, scores=rescale(test.scores, temperature))
    chosen = {name: cast("Metric", module("metrics", name)) for name in ("ece", "log_loss")}
    return Calibration(
        temperature=temperature,
        fitted_on=len(val),
        before=CalibrationFigures(**estimates(task, chosen, test)),
        after=CalibrationFigures(**estimates(task, chosen, after)),
        gain=CalibrationFigures(**{name: gain(metric, after, test) for name, metric in chosen.items()}),
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
