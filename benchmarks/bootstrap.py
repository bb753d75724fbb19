"""The bootstrap of 10,000 resamples against scipy's on the same rows: accuracy, n = 1,000.

    python benchmarks/bootstrap.py

CPU seconds of one core; the two take turns; median of the ratios with their range.
"""

from __future__ import annotations

import statistics
import time
import warnings

import numpy as np
from scipy import stats

from regraft.intervals import bootstrap
from regraft.metrics import accuracy

ROUNDS = 5


def main() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 3, 1000), rng.random((1000, 3))
    right = (scores.argmax(1) == truth).astype(float)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        start = time.process_time()
        bootstrap(accuracy, truth, scores)
        middle = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stats.bootstrap((right,), np.mean, n_resamples=10_000, method="percentile")
        ours.append(middle - start)
        theirs.append(time.process_time() - middle)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"regraft {statistics.median(ours):.2f} s   scipy {statistics.median(theirs):.2f} s   ratio "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]   n = {ROUNDS} rounds"
    )


if __name__ == "__main__":
    main()
