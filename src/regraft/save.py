"""The model folder of a run: weights as safetensors, all else as JSON; loading it runs no code.

model.safetensors   "backbone.…" and "head.…"      preprocess.json   resize, mean, tokenizer …
config.json         recipe of the architecture     labels.json       task, classes, scaling
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plugins import module
from .preprocess import save_tokenizer, to_json
from .runfiles import SCHEMA, RunFolder
from .types import TextSpec

if TYPE_CHECKING:
    from .types import Target, Task


def save_model(folder: RunFolder, target: Target, task: Task) -> None:
    """Write ``model/``. The config comes last: a folder without it is no model."""
    from safetensors.torch import save_file

    source = target.source
    where = folder.path / "model"
    where.mkdir()
    # contiguous clones: safetensors refuses shared memory, and layout is no property of weights
    state = {n: t.detach().cpu().contiguous().clone() for n, t in target.model.state_dict().items()}
    save_file(state, where / "model.safetensors")
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
