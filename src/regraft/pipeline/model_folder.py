"""The model folder of a run: weights as safetensors, all else as JSON; loading it runs no code.

model.safetensors   "backbone.…" and "head.…"      preprocess.json   resize, mean, tokenizer …
config.json         recipe of the architecture     labels.json       task, classes, scaling
novelty.safetensors what training rows are like, where val has rows enough; see novelty.py

Beside it frontier/{start,end}.safetensors, the ends of the line that the model was chosen on; the one
that the model itself is has no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.preprocessing import save_tokenizer, to_json
from ..data.types import TextSpec
from ..errors import SourceError, UsageError
from ..io import guarded
from ..plugins import module
from ..runs.folder import RunFolder
from ..runs.model_files import SCHEMA
from ..runs.tensors import save_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from ..evidence.ood import Novelty
    from ..model.types import Target
    from ..tasks import Task


def save_model(folder: RunFolder, target: Target, task: Task) -> None:
    """Write ``model/``. The config comes last: a folder without it is no model."""
    source = target.source
    where = folder.path / "model"
    where.mkdir(exist_ok=True)  # a kill may have come in the middle of this before
    save_tensors(target.model.state_dict(), where / "model.safetensors")
    if isinstance(source.preprocess, TextSpec):
        save_tokenizer(source.preprocess, where)
    save_files = getattr(module("sources", source.recipe["source"]), "save_files", None)
    if save_files is not None:
        save_files(source, where)
    folder.json("model/preprocess.json", to_json(source.preprocess))
    folder.json("model/labels.json", task.state())
    folder.json(
        "model/config.json",
        {
            "schema": SCHEMA,
            "recipe": source.recipe,
            "features": source.features,
            "task": task.state(),
            "source": {"name": source.name, "digest": source.digest, "licence": source.licence},
        },
    )


def save_novelty(folder: RunFolder, novelty: Novelty) -> None:
    """Write ``model/novelty.safetensors``, bound to the weights beside it."""
    from ..evidence.ood import FILE, SCHEMA, to_tensors, weights_digest

    where = folder.path / "model"
    about = {"schema": str(SCHEMA), "weights": weights_digest(where)}
    save_tensors(to_tensors(novelty), where / FILE, about)


def save_ends(folder: RunFolder, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
    """Write the ends of the frontier, so that another point can be taken without training."""
    where = folder.path / "frontier"
    where.mkdir(exist_ok=True)
    if alpha != 0:
        save_tensors(start, where / "start.safetensors")
    if alpha != 1:
        save_tensors(end, where / "end.safetensors")


def read_ends(run: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return θ(0) and θ(1) of a run, by name in the model.

    Raises UsageError where the run did not keep them, SourceError for a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    guarded.check_folder(run, "frontier")
    guarded.check_folder(run, "model")
    if not (run / "frontier").is_dir():
        raise UsageError(f"{run} did not keep the ends of its frontier: fit it again")
    found = []
    for name in ("start", "end"):
        path = run / "frontier" / f"{name}.safetensors"
        path = path if path.is_file() else run / "model" / "model.safetensors"
        try:
            found.append(load_file(path))
        except (OSError, SafetensorError) as error:
            raise SourceError(f"{path} cannot be read: {error}") from error
    start, end = found
    return start, end
