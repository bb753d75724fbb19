"""Statistics of arrays: scores, intervals, verdicts, calibration, retention, frontier, out-of-distribution."""
