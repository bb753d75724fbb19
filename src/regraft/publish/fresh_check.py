"""An export used as its model card says, in a process of its own. Run as a file; it imports no regraft.

python -P fresh_check.py REQUEST.json SCORES.json      with the export's folder as the working one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(request: Path, out: Path) -> None:
    """Run the card's code, then its ``scores`` on the inputs, a batch at a time."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    if not asked["with_regraft"]:
        sys.modules["regraft"] = None  # type: ignore[assignment]  # importing it is an error
    space: dict[str, Any] = {}
    exec(compile(asked["code"], "README.md", "exec"), space)
    inputs = [x if isinstance(x, str) else tuple(x) for x in asked["inputs"]]
    rows: list[list[float]] = []
    for start in range(0, len(inputs), asked["batch"]):
        found = space["scores"](inputs[start : start + asked["batch"]])
        rows += [[float(v) for v in row] for row in found]
    out.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
