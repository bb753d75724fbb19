"""Random architectures: ``random:timm/NAME``. Nothing is kept, and there is no head.

They serve the from-scratch control and pre-training of a source. The caller seeds torch first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..model.types import LoadedTensor, Source, SourceOptions


def load(name: str, options: SourceOptions) -> Source:
    """Return an architecture with timm's own initialisation. Raises SourceError for another library."""
    from . import timm

    library, _, architecture = name.partition("/")
    if library != "timm" or not architecture:
        raise SourceError(f'"random:{name}" is not known; write random:timm/NAME')
    if options.weights:
        raise SourceError(f"random:{name} takes no weights; for weights write timm:{architecture}")
    source = timm.split(timm.create(architecture, options), f"random:{name}", False)
    source.recipe["num_classes"] = 0
    source.licence = source.recipe["licence"] = "none: nothing was loaded"
    state = source.backbone.state_dict()
    source.report = tuple(LoadedTensor(n, "fresh", tuple(t.shape)) for n, t in state.items())
    source.nothing_kept = True
    return source


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Return the same architecture with random weights."""
    from . import timm

    return timm.build(recipe, folder)
