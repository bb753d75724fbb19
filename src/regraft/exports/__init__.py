"""Export formats, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..model.types import Source
from ..tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from ..compute.arrays import Inputs


# ---------------------------------------------------------------- exports


@dataclass(frozen=True)
class Package:
    """A run's model, ready for an export.

    ``model`` is head(backbone(inputs)) in eval mode on the CPU, float32. Its outputs [B, C] are logits, divided
    by the temperature with --calibrated; for a task with ``affine`` they are the task's scores.
    """

    run: Path
    name: str  # name of the run
    model: nn.Module  # has .backbone and .head; the head is linear where the run's is
    source: Source  # recipe, preprocessing and licence; its backbone is the model's
    task: Task
    inputs: Inputs  # two rows, preprocessed
    pairs: bool  # True: a row is two texts
    plain: Mapping[str, str]  # file name → JSON, for readers without regraft


class Export(Protocol):
    """A file of ``exports/``: a module with these names, and ``int8(folder)`` if it can quantise."""

    needs: tuple[str, ...]  # modules of the extra "export"
    library: str  # name of the library on the hub, for the model card
    with_regraft: bool  # True: loading needs regraft; the check of any other export runs without it
    folds: bool  # True: the package's head includes ``Task.affine``; False: regraft applies it

    def refusal(self, package: Package) -> str | None:
        """Return why the run cannot be exported like this, with a way that works; None where it can."""
        ...

    def write(self, package: Package, folder: Path) -> Sequence[str]:
        """Write the export's files into a folder that exists; return notes for the user, in sentences."""
        ...

    def snippet(self, package: Package) -> str:
        """Return Python that defines ``scores(batch)``: paths, texts or pairs → the task's scores [B, C].

        It runs in the export's folder. The model card prints it, and regraft checks the export by it.
        """
        ...
