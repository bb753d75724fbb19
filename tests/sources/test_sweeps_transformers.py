"""A tenth of the sweep over transformers' families; the whole is tools/sweep_transformers.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "sweep_transformers.py"


@pytest.mark.slow
def test_a_tenth_of_the_families_passes_or_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    done = subprocess.run(
        [sys.executable, str(TOOL), "--every", "10", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    outcomes = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(outcomes) > 20 and sum("predict" in o["passed"] for o in outcomes) >= 14
    assert not [o for o in outcomes if o["failed"]]
