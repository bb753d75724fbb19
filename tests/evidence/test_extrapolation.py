"""The range of a learning curve at more labels, against an optimiser and against curves that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from regraft.evidence.extrapolation import correlation, extrapolate, shape

LABELS = [5, 10, 20, 40]


def drawn(rng: np.random.Generator, truth: Any, k: int = 5, sd: float = 0.03) -> Any:
    """Errors [m, k] with fold effects; folds are correlated by 1/k, as cross-validation makes them."""
    m, shared = len(truth), np.sqrt(0.5)
    fold = shared * rng.normal(size=(1, k)) + shared * rng.normal(size=(m, k))
    common = shared * rng.normal(size=(1, 1)) + shared * rng.normal(size=(m, 1))
    return truth[:, None] + sd * (np.sqrt(1 - 1 / k) * fold + np.sqrt(1 / k) * common)


@pytest.mark.parametrize("seed", range(3))
def test_the_range_is_that_of_an_optimiser_under_the_same_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = drawn(rng, 0.1 + 0.6 * np.array(LABELS, float) ** -0.5, sd=0.02)
    n, mean, k = np.array(LABELS) / 40, errors.mean(1), errors.shape[1]
    covariance = errors.var(1, ddof=1).mean() * (1 / k + 1 / (k - 1)) * correlation(errors)
    inverse = np.linalg.inv(covariance)

    def curve(p: Any, x: Any) -> Any:
        return p[0] + p[1] * (x ** -p[2] - 1) / p[2]

    def misfit(p: Any) -> float:
        r = mean - curve(p, n)
        return float(r @ inverse @ r)

    bounds = [(-1, 1), (0, 5), (0.001, 6)]
    starts = [[0.2, a, b] for a in (0.02, 0.1, 0.3) for b in (0.1, 0.5, 2)]
    least = min(optimize.minimize(misfit, s, bounds=bounds, method="L-BFGS-B").fun for s in starts)
    bound = least + stats.t.ppf(0.975, 2 * (k - 1)) ** 2
    inside = {"type": "ineq", "fun": lambda p: bound - misfit(p)}
    for factor, found in zip((2, 4), extrapolate(LABELS, errors), strict=True):
        ends = [
            [
                sign * done.fun
                for s in starts
                for done in [
                    optimize.minimize(
                        lambda p, sign=sign, x=factor: sign * curve(p, float(x)),
                        s,
                        bounds=bounds,
                        constraints=[inside],
                        method="SLSQP",
                        options={"maxiter": 300},
                    )
                ]
                if done.success and misfit(done.x) <= bound + 1e-6
            ]
            for sign in (1, -1)
        ]
        assert found.labels == factor * 40
        assert found.low == pytest.approx(max(min(ends[0]), 0), abs=0.004)
        assert found.high == pytest.approx(max(ends[1]), abs=0.004)


@pytest.mark.slow
def test_the_range_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(60):
        a, b, c = rng.uniform(0.2, 0.8), rng.uniform(0.2, 1.2), rng.uniform(0.02, 0.3)
        found = extrapolate(LABELS, drawn(rng, c + a * np.array(LABELS, float) ** -b))
        held += [r.low <= c + a * r.labels**-b <= r.high for r in found]
    assert len(held) >= 110 and np.mean(held) > 0.88  # of 95 %, with 60 draws


def test_the_range_narrows_with_the_scatter() -> None:
    truth = 0.1 + 0.6 * np.array(LABELS, float) ** -0.5
    narrow, wide = (extrapolate(LABELS, drawn(np.random.default_rng(1), truth, sd=sd)) for sd in (1e-4, 0.03))
    for near, far in zip(narrow, wide, strict=True):
        real = 0.1 + 0.6 * near.labels**-0.5
        assert near.low <= real <= near.high and near.high - near.low < 0.01 < far.high - far.low


@pytest.mark.parametrize(
    "errors",
    [
        np.full((4, 5), 0.3),  # no scatter
        np.array([[0.5, 0.51], [0.4, 0.41], [0.3, 0.31]]),  # three sizes
        np.array([[0.2, 0.21], [0.3, 0.31], [0.4, 0.41], [0.5, 0.51]]),  # the error rises
    ],
)
def test_some_curves_have_no_range(errors: Any) -> None:
    assert extrapolate(LABELS[: len(errors)], errors) == []


def test_the_shape_at_zero_is_the_limit() -> None:
    x = np.array([0.1, 1.0, 4.0])
    assert shape(x, 0.0) == pytest.approx(shape(x, 1e-7), abs=1e-5)
