"""The bootstrap of 10,000 resamples against scipy's on the same rows: accuracy, n = 1,000; and how many
weights it should hold at once.

    python benchmarks/bootstrap.py [chunks]

CPU seconds of one core; the two take turns; median of the ratios with their range.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings

import numpy as np
from scipy import stats

from regraft.evidence import intervals
from regraft.evidence.intervals import bootstrap
from regraft.metrics import accuracy, auc, macro_f1

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


def chunks() -> None:
    """Compare the chunk in use with one ten times as large, for 10 classes, and check that intervals are equal."""
    usual = intervals.MAX_CHUNK_WEIGHTS
    for n, resamples in ((869, 2000), (20_000, 200)):
        rng = np.random.default_rng(0)
        truth, scores = rng.integers(0, 10, n), rng.random((n, 10))
        for metric in (auc, macro_f1):
            taken: dict[int, list[float]] = {usual: [], 10 * usual: []}
            found = set()
            for _ in range(ROUNDS):
                for chunk, times in taken.items():
                    intervals.MAX_CHUNK_WEIGHTS = chunk
                    start = time.process_time()
                    found.add(bootstrap(metric, truth, scores, resamples=resamples))
                    times.append(time.process_time() - start)
            intervals.MAX_CHUNK_WEIGHTS = usual
            assert len(found) == 1
            ours, large = taken.values()
            ratios = [a / b for a, b in zip(ours, large, strict=True)]
            print(
                f"{metric.title}, n = {n}, {resamples} resamples: {usual:,} at once "
                f"{statistics.median(ours):.3f} s, ten times that {statistics.median(large):.3f} s, ratio "
                f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]   "
                f"n = {ROUNDS} rounds",
                flush=True,
            )


if __name__ == "__main__":
    chunks() if sys.argv[1:] == ["chunks"] else main()
