"""A text file: a line an epoch, and the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import EpochFigures, RunEnd


needs = ("json",)


def track(
    name: str, params: Mapping[str, str], epochs: Iterable[EpochFigures], end: Callable[[], RunEnd], where: str
) -> str:
    """Write the epochs as they come, then the end; return where they are."""
    Path(where).mkdir(parents=True, exist_ok=True)
    with (Path(where) / "run.jsonl").open("w", encoding="utf-8") as file:
        for line in epochs:
            print(json.dumps(line.figures), file=file, flush=True)
        last = end()
        print(json.dumps({"state": last.state, **last.metrics}), file=file)
    return f"{name} is in {where}"
