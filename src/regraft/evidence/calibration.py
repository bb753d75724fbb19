"""Calibration: is the model right as often as it says, and would a temperature help?

    p_T(c | x) ∝ p(c | x)^(1/T),   T = argmin over val of −Σ log p_T(y | x)

One number, fitted on val; it changes no answer, only how sure the model says it is. Guo, Pleiss, Sun
and Weinberger 2017, 1706.04599, section 4.2. Reported with every run; applied where it is asked for,
by ``Predictor.calibrated`` and ``predict --calibrated``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..plugins import module
from .scoring import Predictions, estimates, gain

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray
    from ..metrics import Metric
    from ..tasks import Task


LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are tried


def cooled(scores: FloatArray, temperature: float) -> FloatArray:
    """Probabilities [N, C] at a temperature: their logits divided by it."""
    logits = np.log(np.clip(scores, np.finfo(np.float64).tiny, 1.0)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return result


def fit_temperature(rows: Predictions) -> float:
    """The temperature of least log loss on these rows."""
    from scipy.optimize import minimize_scalar

    at = np.arange(len(rows)), rows.truth

    def loss(log_t: float) -> float:
        p = cooled(rows.scores, float(np.exp(log_t)))[at]
        return float(-np.log(np.clip(p, np.finfo(np.float64).tiny, 1.0)).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def calibration(task: Task, val: Predictions, test: Predictions) -> dict[str, Any]:
    """``calibration`` of result.json: test as it is and at the temperature fitted on val."""
    temperature = fit_temperature(val)
    after = replace(test, scores=cooled(test.scores, temperature))
    chosen = {name: cast("Metric", module("metrics", name)) for name in ("ece", "log_loss")}
    return {
        "temperature": temperature,
        "fitted_on": len(val),
        "before": estimates(task, chosen, test),
        "after": estimates(task, chosen, after),
        "gain": {name: gain(metric, after, test) for name, metric in chosen.items()},
        "reliability": {"before": reliability(test), "after": reliability(after)},
    }


def reliability(rows: Predictions) -> list[dict[str, float]]:
    """Per bin of confidence that has rows: its mean confidence, its accuracy, its rows."""
    confidence, right, bins = module("metrics", "ece").binned(rows.truth, rows.scores)
    return [
        {"confidence": float(confidence[own].mean()), "accuracy": float(right[own].mean()), "rows": int(own.sum())}
        for b in np.unique(bins)
        for own in [bins == b]
    ]
