"""Run folder as a source: its fitted backbone, its head and its classes.

Nothing in a run is code: the recipe is JSON, and the weights are safetensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import SourceError
from ..io import guarded
from ..model.types import LoadedTensor, Source, SourceOptions
from ..plugins import module
from ..runs import records
from ..runs.model_files import SCHEMA, ModelConfig
from . import _weights


def load(name: str, options: SourceOptions) -> Source:
    """Return the run's model. Raises SourceError for a folder that is no run, or a damaged one."""
    folder = Path(name) / "model"
    try:
        guarded.check_folder(Path(name), "model")  # check here, because libraries open the files by path
        config = read_config(Path(name))
    except guarded.NotReadError as error:
        raise SourceError(str(error)) from error
    try:
        source = build(config.recipe, folder)
        classes = tuple(config.task.classes)
    except SourceError:
        raise
    except Exception as error:  # a changed recipe raises errors of many kinds
        raise SourceError(
            f"{folder / 'config.json'}: no network can be built from its recipe ({type(error).__name__}: "
            f"{error}); the run is damaged"
        ) from error
    weights = _weights.read(options.weights or folder / "model.safetensors", key=options.weights_key)
    body = below(weights.tensors, "backbone.")
    head = below(weights.tensors, "head.")
    where = str(folder / "model.safetensors")
    matched = _weights.match(source.backbone.state_dict(), body, where=where, allow_fresh=options.allow_fresh)
    source.backbone.load_state_dict(matched.state, strict=False)
    source.head = None
    if set(head) == {"weight", "bias"} and head["weight"].ndim == 2:
        outputs, features = head["weight"].shape  # [C, D]
        if features != source.features:
            raise SourceError(f"{where}: head takes {features} features, not {source.features}")
        source.head = nn.Linear(features, outputs)
        fitted = _weights.match(source.head.state_dict(), head, where=where)
        source.head.load_state_dict(fitted.state)
    source.name = name
    source.labels, source.words = classes or None, None
    source.task = config.task.task
    source.digest = weights.digest
    source.report = (*matched.report, *(LoadedTensor(f"head.{n}", "kept", tuple(t.shape)) for n, t in head.items()))
    source.nothing_kept = False  # a run from random weights has trained them
    if options.max_length is not None and source.kind == "text":
        limit = min(options.max_length, source.preprocess.max_length)  # type: ignore[union-attr]
        source.preprocess = replace(source.preprocess, max_length=limit)  # type: ignore[arg-type]
    return source


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Return the architecture of the source that the run began from.

    Raises SourceError for a recipe that names no source of regraft's own.
    """
    kind = recipe.get("source")
    if kind == "run" or not isinstance(kind, str):
        raise SourceError(f'{folder}: its recipe names no source ("{kind}")')
    try:
        source: Source = module("sources", kind).build(recipe, folder)
    except LookupError as error:
        raise SourceError(f"{folder}: {error}") from error
    return source


def read_config(run: Path) -> ModelConfig:
    """Return the content of model/config.json.

    Raises SourceError for a folder that is no run's model, NotReadError for a damaged one.
    """
    name = "model/config.json"
    config = guarded.read_json(run, name)
    if config is None:
        raise SourceError(f"{guarded.shown(run, name)}: not a run's model (there is no such file)")
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        raise SourceError(f"{guarded.shown(run, name)}: made by another version of regraft (schema {SCHEMA} expected)")
    try:
        return records.checked(ModelConfig, config)
    except ValueError as error:
        raise guarded.damaged(run, name, f"recipe or task is missing or invalid: {error}") from error


def below(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors under a prefix, without the prefix."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
