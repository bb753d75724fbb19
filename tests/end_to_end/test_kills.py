"""kill -9 at random moments: every resume succeeds, and ends where the run that was left alone does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.fault(13)
def test_ten_kills_at_random_moments_cost_no_bit() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, runs, failed, equal, of = map(
        int,
        re.findall(r"^(\d+) kills .* in (\d+) runs: (\d+) resumes failed, (\d+) of (\d+) runs", done.stdout, re.M)[0],
    )
    assert kills >= 10 and failed == 0 and equal == runs == of
