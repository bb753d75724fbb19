"""Export formats, one file each; found by its name, see :mod:`regraft.plugins`."""

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
    """A run's model, ready to leave regraft; what a file of ``exports/`` is handed.

    ``model`` is head(backbone(inputs)) in eval mode on the CPU, float32. Its outputs [B, C] are logits,
    divided by the temperature where that was asked for, or numbers in their own units.
    """

    run: Path
    name: str  # what the run is called
    model: nn.Module  # has .backbone and .head, which is linear wherever a run's head is
    source: Source  # its recipe, its preprocessing and its licence; the same backbone
    task: Task
    inputs: Inputs  # a batch of two rows, as the network takes them
    pairs: bool  # a row is two texts
    plain: Mapping[str, str]  # file name → JSON: what a reader without regraft needs to know


class Export(Protocol):
    """A file of ``exports/``: a module with these names, and ``int8(folder)`` where it can be had."""

    needs: tuple[str, ...]  # modules of the extra "export"
    with_regraft: bool  # loading it takes regraft; every other one is checked without
    folds: bool  # its outputs are to be in the task's own units; else regraft scales them

    def refusal(self, package: Package) -> str | None:
        """Why the run cannot leave this way and which way it can; None where it can."""
        ...

    def write(self, package: Package, folder: Path) -> Sequence[str]:
        """The export's files, in a folder that exists; → what the user should know, in sentences."""
        ...

    def snippet(self, package: Package) -> str:
        """Python that defines ``scores(batch)``: paths, texts or pairs → scores [B, C], as the task's
        ``scores`` gives them. It runs in the export's folder, is printed in the model card, and is
        what the export is checked by."""
        ...
