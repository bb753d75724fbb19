"""Modules of a sentence-transformers folder that regraft has, and their settings.

regraft imports no class by a name that a folder gives. It looks names up in fixed lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ._encoders import ACTIVATIONS
from ._folder import read_json

MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}

FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # as versions before 5.4 wrote them, in the order of concatenation

MAX_FEATURES = 65_536  # features of a dense layer

ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:activation|linear)\.)?(\w+)")

HEADS = {"LogitScore"}  # modules of cross-encoders that follow the model's own head


@dataclass
class Sentence:
    """Modules of a folder beside its encoder."""

    encoder: Path  # the folder with the encoder's config.json
    pooling: str = ""  # "" where the folder has none
    steps: list[dict[str, Any]] = field(default_factory=list)  # dense layers; {} is a normalisation to unit length
    dense: list[Path] = field(default_factory=list)  # the dense layers' folders
    notes: tuple[str, ...] = ()


def read(folder: Path) -> Sentence:
    """Return the modules of modules.json, or the folder alone where there is no such file.

    Raises SourceError that names a module which regraft does not have.
    """
    listed = read_json(folder / "modules.json", list)
    if not listed:
        return Sentence(folder)
    modules = [named(m, folder) for m in listed]
    first, where = modules[0]
    if first != "Transformer":
        raise SourceError(
            f"{folder}: refused, modules.json begins with {first}; regraft reads folders that begin with a Transformer"
        )
    sentence = Sentence(where)
    for name, part in modules[1:]:
        if name == "Pooling" and not sentence.pooling and not sentence.steps:
            sentence.pooling = pooling(part)
        elif name == "Dense":
            sentence.steps.append(dense(part))
            sentence.dense.append(part)
        elif name == "Normalize":
            sentence.steps.append({})
        elif name == "Dropout":
            sentence.notes += ("the Dropout of modules.json is left out: set dropout in the plan",)
        elif name not in HEADS:
            raise SourceError(
                f"{folder}: refused, modules.json names {name} ({part.name}); regraft has Transformer, "
                "one Pooling, Dense and Normalize"
            )
    while sentence.steps and not sentence.steps[-1]:
        del sentence.steps[-1]
        note = "features are not normalised to unit length, unlike the folder's own"
        sentence.notes += (note,) if note not in sentence.notes else ()
    sentence.notes += prompts(folder) + lower_case(where)
    return sentence


def named(module: Any, folder: Path) -> tuple[str, Path]:
    """Return a module's class name and folder. Raises SourceError for a module of another package."""
    path = module.get("path", "") if isinstance(module, dict) else None
    kind = module.get("type") if isinstance(module, dict) else None
    if not isinstance(path, str) or not isinstance(kind, str):
        raise SourceError(f"{folder}: modules.json has {module!r:.60}, not a type and a path")
    if kind.partition(".")[0] != "sentence_transformers":
        raise SourceError(f"{folder}: refused, modules.json asks for code of its own ({kind:.80})")
    if path and (Path(path).name != path or path in (".", "..")):
        raise SourceError(f"{folder}: refused, modules.json names a folder elsewhere ({path:.80})")
    return kind.rpartition(".")[2], folder / path


def pooling(folder: Path) -> str:
    """Return the modes of a pooling as "cls+mean". Raises SourceError for an unknown mode."""
    values = read_json(folder / "config.json")
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in FLAGS.items() if values.get(flag) is True] or ["mean"]
        other = [k for k, v in values.items() if k.startswith("pooling_mode_") and v]
        modes = [*modes, *(k for k in other if k not in FLAGS)]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(m in MODES for m in map(str, modes)):
        raise SourceError(f"{folder}: pooling {modes} is not supported; set pooling to mean, cls, max or last")
    return "+".join(MODES[str(m)] for m in modes)


def dense(folder: Path) -> dict[str, Any]:
    """Return the plain values of a dense layer. Raises SourceError for a layer that regraft does not have."""
    values = read_json(folder / "config.json")
    path = values.get("activation_function", "torch.nn.modules.activation.Tanh")
    known = ACTIVATION.fullmatch(path) if isinstance(path, str) else None
    if known is None or known[1] not in ACTIVATIONS:
        raise SourceError(f"{folder}: refused, its activation {path!s:.80} is none of {', '.join(ACTIVATIONS)}")
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise SourceError(f"{folder}: refused, its {key} is {values[key]!s:.60}")
    step = {
        "inputs": values.get("in_features"),
        "outputs": values.get("out_features"),
        "bias": values.get("bias", True) is not False,
        "activation": known[1],
        "residual": values.get("use_residual") is True,
    }
    check_steps([step], str(folder))
    return step


def check_steps(steps: Any, reference: str) -> None:
    """Raise SourceError for values that describe no layers after pooling."""
    kinds = {"inputs": int, "outputs": int, "bias": bool, "activation": str, "residual": bool}
    each: list[Any] = steps if isinstance(steps, list) else [None]
    for step in each:
        if step == {}:
            continue
        types = {k: type(v) for k, v in step.items()} if isinstance(step, dict) else {}
        if types != kinds or not all(1 <= step[k] <= MAX_FEATURES for k in ("inputs", "outputs")):
            raise SourceError(f"{reference}: there is no dense layer of {step!r:.120}")
        if step["activation"] not in ACTIVATIONS:
            raise SourceError(f"{reference}: there is no activation {step['activation']:.60}")


def prompts(folder: Path) -> tuple[str, ...]:
    """Return a note on prompts that sentence-transformers would put before texts."""
    values = read_json(folder / "config_sentence_transformers.json")
    given = values.get("prompts")
    named = sorted(str(k) for k, v in given.items() if v) if isinstance(given, dict) else []
    if not named:
        return ()
    default = values.get("default_prompt_name")
    usual = f', not even the usual "{default}"' if default in named else ""
    return (
        f"regraft does not put the folder's prompts ({', '.join(named)}) before texts{usual}: write them into "
        "the data where they help",
    )


def lower_case(folder: Path) -> tuple[str, ...]:
    """Return a note where sentence-transformers would lower-case texts first."""
    if read_json(folder / "sentence_bert_config.json").get("do_lower_case") is not True:
        return ()
    return (
        "sentence_bert_config.json lower-cases texts before the tokenizer, regraft does not: "
        "lower-case the data where the tokenizer keeps capitals",
    )
