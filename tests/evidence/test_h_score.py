"""The H-score of features, against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.evidence.h_score import h_score


def test_the_h_score_is_its_formula():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 5)) @ rng.normal(size=(5, 5)) + 2.0 * np.eye(3, 5)[y]
    centred = x - x.mean(0)
    n, d = x.shape
    plain = centred.T @ centred / n
    mu = np.trace(plain) / d
    spread = np.square(plain - mu * np.eye(d)).sum() / d
    noise = sum(np.square(np.outer(r, r) - plain).sum() for r in centred) / n**2 / d
    delta = min(noise, spread) / spread  # Ledoit and Wolf 2004, section 3.3
    shrunk = (1 - delta) * plain + delta * mu * np.eye(d)
    means = np.stack([centred[y == c].mean(0) for c in y])
    expected = (1 - delta) * np.trace(np.linalg.inv(shrunk) @ (means.T @ means / n))
    assert 0.01 < delta < 0.5
    assert h_score(x, [str(c) for c in y]) == pytest.approx(expected, rel=1e-9)
    assert h_score(np.zeros((6, 2)), list("aabbab")) == 0.0
