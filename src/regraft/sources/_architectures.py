"""Classes of transformers that a config.json stands for, and the part that regraft takes.

regraft looks a class up in the module of its family. It imports nothing by a name that a config gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import transformers
from transformers import PreTrainedModel

from ..errors import SourceError

HEADED = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}

HEADS = (
    "logits_proj",
    "sequence_summary.summary",
    "fc",
    "classifier",
    "score",
    "head",
)  # dotted names of classifiers; the first that a model has is its head

ENCODERS = (
    "Encoder",
    "EncoderModel",
    "TextModel",
    "VisionModel",
    "TextModelWithProjection",
    "VisionModelWithProjection",
)  # endings of classes that are one encoder of several

TOWERS = (
    "aimv2",
    "align",
    "altclip",
    "blip",
    "chinese_clip",
    "clip",
    "clipseg",
    "metaclip_2",
    "siglip",
    "siglip2",
)  # families with an encoder for pictures and one for texts

MASKED = {"vit_mae": "vit"}  # a family trained with random masking → the family without masking

ELSEWHERE = (
    "backbone",
    "backbone_config",
    "use_pretrained_backbone",
    "use_timm_backbone",
)  # keys that name a second network with weights of its own


@dataclass(frozen=True)
class Choice:
    """Class, configuration and notes for a config.json: the start of a recipe."""

    auto: str  # the automatic class
    named: str  # a class of the family; "" for the automatic class's choice
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    tower: str = ""  # prefix of the encoder's tensors in the file of both encoders: "vision_model."


def choose(values: dict[str, Any], pictures: bool, reference: str) -> Choice:
    """Return the class for a config.json. ``pictures`` is true where the folder says how pictures are prepared.

    Raises SourceError, naming what the config asks for, where regraft does not have it.
    """
    architecture = name_of(values, reference)
    refuse_elsewhere(values, reference)
    kind = str(values.get("model_type", ""))
    family = config_class(kind, reference)
    if architecture.endswith("WithTeacher"):
        raise SourceError(f"{reference}: refused, {architecture} has several heads")
    auto = next((a for end, a in HEADED.items() if architecture.endswith(end)), "AutoModel")
    pair = values.get("is_encoder_decoder", getattr(family, "is_encoder_decoder", False))
    if auto != "AutoModel":
        if pair:
            raise SourceError(
                f"{reference}: refused, {architecture} is an encoder and a decoder, and its head reads "
                "the decoder; regraft takes encoders, and decoders alone"
            )
        return Choice(auto, "", values)
    if kind in TOWERS:
        return tower(values, architecture, pictures, reference)
    if kind in MASKED:
        return unmasked(values)
    named = architecture if architecture.endswith(ENCODERS) else ""
    notes: tuple[str, ...] = ()
    if pair and not named:
        named = first_model(family, class_names(family, "EncoderModel"))
        if not named:
            raise SourceError(
                f"{reference}: refused, {architecture or kind} is an encoder and a decoder, and "
                f"transformers has no class for the encoder of {kind} alone"
            )
        notes = (f"the encoder of {architecture or kind} is taken, without its decoder",)
    return Choice("AutoModel", first_model(family, [named]), values, notes)


def name_of(values: dict[str, Any], reference: str) -> str:
    """Return the first name of ``architectures``, or "" where there is none."""
    named = values.get("architectures") or [""]
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
        raise SourceError(f"{reference}: config.json has architectures {named}, not a list of names")
    return str(named[0])


def refuse_elsewhere(values: Any, reference: str) -> None:
    """Raise SourceError for code, or for a second network's name, anywhere in a config."""
    if isinstance(values, list):
        for value in values:
            refuse_elsewhere(value, reference)
    if not isinstance(values, dict):
        return
    kind = str(values.get("model_type", ""))
    if "auto_map" in values:
        raise SourceError(f"{reference}: refused, its config asks for code of its own (auto_map)")
    if kind.startswith("timm_"):
        inner = values.get("architecture") or values.get("backbone") or "a network"
        raise SourceError(
            f"{reference}: refused, {kind} is timm's {inner!s:.60} in a wrapper, which may fetch other "
            "weights: use timm:NAME with --weights FILE"
        )
    for key in ELSEWHERE:
        if values.get(key):
            raise SourceError(
                f"{reference}: refused, {kind or 'its config'} names another network "
                f"({key}: {values[key]!s:.60}); regraft takes networks that stand alone"
            )
    if values.get("quantization_config"):
        raise SourceError(
            f"{reference}: refused, its weights are quantised (quantization_config): use the weights "
            "in float32, float16 or bfloat16 that they were made from"
        )
    for value in values.values():
        refuse_elsewhere(value, reference)


def config_class(kind: str, reference: str) -> Any:
    """Return the library's configuration class. Raises SourceError where it has none."""
    if not kind:
        raise SourceError(
            f"{reference}: config.json has no model_type, which names the architecture: it is no transformers model"
        )
    try:
        return transformers.CONFIG_MAPPING[kind]
    except KeyError:
        raise SourceError(
            f'{reference}: transformers {transformers.__version__} has no architecture "{kind}"; try a newer version'
        ) from None


def tower(values: dict[str, Any], architecture: str, pictures: bool, reference: str) -> Choice:
    """Return the choice of one of two encoders.

    ``architectures`` names the encoder. Otherwise it is the one for pictures, where the folder says how pictures are
    prepared, else the one for texts.
    """
    kind = str(values["model_type"])
    named = architecture if architecture.endswith(ENCODERS) else ""
    image = "Vision" in named if named else pictures
    side = "vision_config" if image else "text_config"
    sub = getattr(config_class(kind, reference), "sub_configs", {}).get(side)
    inner = values.get(side) or {}
    if sub is None or not isinstance(inner, dict):
        raise SourceError(f"{reference}: config.json has no {side} that describes an encoder")
    config = {**inner, "model_type": sub.model_type}
    config.setdefault("projection_dim", values.get("projection_dim", 512))
    named = first_model(sub, [named, *class_names(sub, "VisionModel" if image else "TextModel")])
    which = "pictures" if image else "texts"
    note = f"the encoder of {which} is taken from {architecture or kind} ({named or side})"
    notes = () if named == architecture else (note,)
    return Choice("AutoModel", named, config, notes, "vision_model." if image else "text_model.")


def in_tower(tensors: dict[str, Any], prefix: str, expected: Iterable[str]) -> dict[str, Any]:
    """Return a file's tensors, with the tensors of one encoder under that encoder's own names.

    The class of both encoders accepts "layer" and "layers" as the name of a list, the encoder's class may not.
    """
    names = set(expected)
    known: dict[str, Any] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        others = (short, short.replace(".layer.", ".layers."), short.replace(".layers.", ".layer."))
        inside = name.startswith(prefix) or name in names
        known[next((o for o in others if inside and o in names), name)] = tensor
    return known


def unmasked(values: dict[str, Any]) -> Choice:
    """Return the choice of the same encoder without masking, which reads the weights as its classifier does."""
    kind = str(values["model_type"])
    config = {k: v for k, v in values.items() if not k.startswith(("decoder_", "mask_", "norm_pix"))}
    config |= {"model_type": MASKED[kind], "architectures": None}
    note = f"masking is off: {kind} is read as {MASKED[kind]}, without its decoder"
    return Choice("AutoModel", "", config, (note,))


def modeling(family: Any) -> Any:
    """Return the module with the classes of a configuration's family, or None."""
    name = family.__module__.replace(".configuration_", ".modeling_")
    if not name.startswith("transformers.models."):
        return None
    try:
        return import_module(name)
    except ImportError:
        return None


def class_names(family: Any, end: str) -> list[str]:
    """Return the names of a family's classes with this ending."""
    return [n for n in vars(modeling(family) or object) if n.endswith(end)]


def model_class(family: Any, name: str) -> Any:
    """Return the family's model class of that name, or None where it has none."""
    candidate = vars(modeling(family) or object).get(name) if re.fullmatch(r"\w+", name) else None
    is_model = isinstance(candidate, type) and issubclass(candidate, PreTrainedModel)
    return candidate if is_model and name.endswith(ENCODERS) else None


def first_model(family: Any, names: Iterable[str]) -> str:
    """Return the first name that is a model class of the family, or ""."""
    return next((n for n in names if model_class(family, n) is not None), "")


def head_of(net: Any, reference: str) -> str:
    """Return the dotted name of the classifier. Raises SourceError for none, or for several."""
    children = {n for n, m in net.named_children() if any(True for _ in m.parameters())}
    rivals = sorted(n for n in children if n in ("dist_head", "classifier_distill", "cls_classifier"))
    modules = dict(net.named_modules())
    head = next((n for n in HEADS if n in modules and any(True for _ in modules[n].parameters())), "")
    body = getattr(net, "base_model_prefix", "")
    after = sorted(children - {body})
    if rivals:
        raise SourceError(
            f"{reference}: refused, {type(net).__name__} has several heads ({', '.join(after)}); "
            "regraft takes models with one"
        )
    if not head:
        names = ", ".join(after) or "no layer after its encoder"
        raise SourceError(
            f"{reference}: refused, regraft does not know the head of {type(net).__name__} among its "
            f"layers ({names}); use the encoder's own folder, saved without the head"
        )
    return head
