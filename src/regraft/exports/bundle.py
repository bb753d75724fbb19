"""regraft's own: safetensors and JSON, for `regraft.load`, `predict`, `evaluate`, or as a source.

Weights, preprocessing, labels, plan and evidence, without the run's data and without folders above
files. The temperature is among the evidence, so that ``calibrated()`` works on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..types import Package

needs: tuple[str, ...] = ()
with_regraft = True
folds = False


def refusal(package: Package) -> str | None:
    return None


def write(package: Package, folder: Path) -> Sequence[str]:
    shutil.copytree(package.run / "model", folder / "model")
    for name in ("model/config.json", "plan.toml", "result.json"):
        (folder / name).write_text(package.plain[name], encoding="utf-8")
    return ()


def snippet(package: Package) -> str:
    return """import regraft

model = regraft.load(".")  # this folder

def scores(batch):
    return [list(p.scores.values()) for p in model.predict(batch)]
"""
