"""Statistics: scores, intervals, verdicts, calibration, retention, frontier, out-of-distribution scores."""
