"""Provenance: hashes, versions, seeds, the plan."""

from __future__ import annotations

from typing import Any

from ..reading import RunFiles

ORDER, TITLE = 100, "Provenance"

TEMPLATE = """
{{ m.table(["what", "value"], rows, "Paths are shown without the folders above them", left=2) }}
<details><summary>The plan, which runs it again: <code>regraft fit plan.toml</code></summary>
<pre tabindex="0">{{ plan }}</pre></details>
"""


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    r, env = run.result, run.environment
    seeds = [s.seed for s in r.seeds]
    rows = [
        ("regraft", env.regraft),
        ("source weights (sha256)", r.source.digest or "none"),
        ("data", env.data_digest),
        ("test rows", env.test_digest),
        ("test opened", r.test_opened or "could not be counted"),
        ("seeds", ", ".join(map(str, seeds))),
        ("Python", env.python),
        ("versions", ", ".join(f"{k} {v}" for k, v in env.versions.items())),
        ("device", f"{env.device} ({env.device_name}), {env.threads} threads"),
        ("time", ", ".join(f"{k} {v:.0f} s" for k, v in r.timing.items() if v >= 0.5)),
    ]
    return {"rows": rows, "plan": run.plan}
