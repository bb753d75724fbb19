"""Any transformers encoder: ``transformers:NAME_OR_FOLDER``.

A ``…ForSequenceClassification`` or ``…ForImageClassification`` keeps its head; anything else is a
plain encoder with pooling. A sentence-transformers folder gives its own pooling but not its
2_Normalize: the probe standardises features anyway, and on unit vectors a linear head's logits
(|w·x| ≤ ‖w‖) are small at the learning rates that suit the backbone.
Remote code is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RegraftError, SourceError
from ..types import LoadedTensor, Preprocess, Source, SourceOptions, TextSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ._weights import Match, Weights

DEEPEST = 1_000  # layers; more are a damaged number, and building them would take for ever
HEADED = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}


def load(name: str, options: SourceOptions) -> Source:
    """The model of a folder or of the hub. Raises SourceError where it cannot be had or split."""
    from . import _folder

    folder = _folder.find(name, options.offline)
    try:
        return from_folder(folder, f"transformers:{name}", options)
    except RegraftError:
        raise
    except Exception as error:  # the library's, as many kinds as there are ways to be damaged
        raise SourceError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {error}); one of its JSON files may be "
            "damaged: fetch the folder anew, or write it anew with save_pretrained"
        ) from error


def from_folder(folder: Path, reference: str, options: SourceOptions) -> Source:
    from .. import foreign_code
    from . import _folder, _weights

    values = _folder.read_json(folder / "config.json")
    if not values:
        raise SourceError(f"{folder}: no config.json; it is not a transformers model")
    foreign_code.refuse(folder)
    recipe = {"source": "transformers", "auto": auto_class(values, reference), "config": values}
    net = skeleton(recipe, reference)
    key = options.weights_key
    weights = (
        _weights.read(options.weights, key=key) if options.weights else _folder.weights(folder)
    )
    net, found, notes = fill(net, weights, recipe, str(options.weights or folder), options)
    image = net.main_input_name == "pixel_values"
    more: tuple[str, ...] = ()
    preprocess: Preprocess
    if image:
        wanted = options.in_channels or net.config.num_channels
        if wanted != net.config.num_channels:
            raise SourceError(f"{reference} takes {net.config.num_channels} channels, not {wanted}")
        preprocess = _folder.image_spec(folder, net.config)
    else:
        preprocess, more = _folder.text_spec(folder, net, options.max_length)
    class_token = any(n.endswith("cls_token") for n, _ in net.named_parameters())
    recipe["config"] = net.config.to_dict()
    recipe["pooling"] = _folder.pooling(folder, options.pooling, image, class_token)
    recipe["head"] = found.head_kept
    recipe["licence"] = _folder.licence(folder)
    try:
        source = split(net, recipe, preprocess, reference)
    except (ValueError, RuntimeError) as error:
        if not image:
            raise
        sides = " × ".join(map(str, preprocess.size))  # type: ignore[union-attr]
        raise SourceError(
            f"{folder}: preprocessor_config.json asks for pictures of {sides} pixels, which the model "
            f"refuses ({error}): mend the one or the other"
        ) from error
    source.digest = weights.digest
    source.report = tuple(
        t if t.state == "unused" or t.name.startswith("classifier.")
        else LoadedTensor(f"net.{t.name}", t.state, t.shape, t.note)
        for t in found.report
    )  # fmt: skip
    source.notes = (*weights.notes, *notes, *more)
    if (folder / "2_Normalize").is_dir() or "Normalize" in str(
        _folder.read_json(folder / "modules.json", list)
    ):
        source.notes += ("features are not normalised to unit length, unlike the folder's own",)
    return source


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """The same architecture with random weights; the tokenizer's files are in folder/tokenizer."""
    from . import _image

    net = skeleton(recipe, str(folder), meta=False)
    image = recipe.get("image")
    spec: Preprocess = (
        _image.from_recipe(image)
        if image
        else TextSpec(str(folder / "tokenizer"), recipe["max_length"])
    )
    return split(net, recipe, spec, str(folder))


def save_files(source: Source, folder: Path) -> None:
    """What ``build`` needs beside the recipe: the tokenizer's files, in folder/tokenizer."""
    from . import _folder

    if isinstance(source.preprocess, TextSpec):
        _folder.copy_tokenizer(Path(source.preprocess.tokenizer), folder / "tokenizer")


def auto_class(values: dict[str, Any], reference: str) -> str:
    """The library's automatic class for config.json. Raises SourceError for two heads in one."""
    named = values.get("architectures") or [""]
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
        raise SourceError(
            f"{reference}: config.json has architectures {named}, not a list of names"
        )
    architecture = named[0]
    if architecture.endswith("WithTeacher"):
        raise SourceError(f"{reference}: refused, {architecture} has several heads")
    if values.get("is_encoder_decoder"):
        raise SourceError(f"{reference}: refused, {architecture} is an encoder and a decoder")
    return next((a for end, a in HEADED.items() if architecture.endswith(end)), "AutoModel")


def skeleton(recipe: dict[str, Any], reference: str, meta: bool = True) -> Any:
    """The architecture; on the meta device (no memory, no values) unless it will be used as it is.

    A plain encoder is built without the pooler where the class allows it: a random pooler would
    be trained, and saved, for nothing.
    """
    import torch
    import transformers

    from ..foreign_code import hook

    values = dict(recipe["config"])
    kind = values.pop("model_type", "")
    if recipe["auto"] not in ("AutoModel", *HEADED.values()):
        raise SourceError(f"{reference}: refused, its recipe asks for code of its own")
    if key := hook(values):
        raise SourceError(
            f'{reference}: refused, nothing executed: its recipe\'s "{key}" names Python code; remedy: '
            "fit again from a source without it"
        )
    auto = getattr(transformers, recipe["auto"])
    try:
        config = transformers.AutoConfig.for_model(kind, **values)
        if (layers := getattr(config, "num_hidden_layers", None) or 0) > DEEPEST:
            raise ValueError(f"it would have {layers} layers")
        config.dtype = torch.float32
        with torch.device("meta" if meta else "cpu"):
            try:
                net = auto.from_config(config, trust_remote_code=False, **extra(recipe))
            except TypeError:  # a class without add_pooling_layer
                recipe["plain"] = True
                net = auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # as many kinds as there are configurations
        raise SourceError(f'{reference}: "{kind}" cannot be built ({error})') from error
    heads = [n for n, _ in net.named_children() if "classifier" in n and n != "pre_classifier"]
    if recipe["auto"] != "AutoModel" and heads != ["classifier"]:
        found = ", ".join(heads) or "none by that name"
        raise SourceError(f"{reference}: refused, one classifier expected, it has {found}")
    return net.eval()


def extra(recipe: dict[str, Any]) -> dict[str, Any]:
    headed = recipe["auto"] != "AutoModel" or recipe.get("plain")
    return {} if headed else {"add_pooling_layer": False}


def fill(
    net: Any, weights: Weights, recipe: dict[str, Any], where: str, options: SourceOptions
) -> tuple[Any, Match, tuple[str, ...]]:
    """(model with weights, what came of every tensor, notes).

    transformers renames the tensors of old files; what it says is missing, of another shape or
    unexpected then passes the same gate as any source.
    """
    import torch
    from transformers.utils import logging

    from . import _weights

    tensors, notes = _weights.strip_prefixes(weights.tensors, net.state_dict())
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        net, info = type(net).from_pretrained(
            None,
            config=net.config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **extra(recipe),
        )
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    expected = net.state_dict()
    other = {name: shape for name, shape, *_ in info["mismatched_keys"]}
    absent = set(info["missing_keys"]) - set(other)
    read: dict[str, Tensor] = {n: t for n, t in expected.items() if n not in absent}
    read |= {n: torch.empty(tuple(s), device="meta") for n, s in other.items()}
    left = {n for n in tensors if n.endswith("position_ids") and n not in expected}
    read |= {n: tensors.get(n, torch.empty(0)) for n in {*info["unexpected_keys"], *left}}
    head = "classifier" if recipe["auto"] != "AutoModel" else ""
    found = _weights.match(expected, read, where=where, head=head, allow_fresh=options.allow_fresh)
    return net.eval(), found, notes


def split(net: Any, recipe: dict[str, Any], preprocess: Preprocess, reference: str) -> Source:
    """Backbone, head and blocks, proved by a forward pass of a random batch of two."""
    import dataclasses

    import torch
    from torch import nn

    from . import _blocks, _encoders

    inputs = example(net, preprocess)
    headed = recipe["auto"] != "AutoModel"
    expected, head = None, None
    if headed:
        with torch.no_grad():
            out = net(**inputs) if isinstance(inputs, dict) else net(pixel_values=inputs)
        expected, head = out.logits, net.classifier
        net.classifier = nn.Identity()
        with torch.no_grad():
            out = net(**inputs) if isinstance(inputs, dict) else net(pixel_values=inputs)
        if out.logits.ndim == 3:
            head = _encoders.TokenHead(head)
    backbone = _encoders.Encoder(net, "head" if headed else recipe["pooling"]).eval()
    blocks = _encoders.blocks(backbone)
    features, blocks = _blocks.prove(backbone, head, blocks, inputs, expected, reference)
    if isinstance(preprocess, TextSpec):
        recipe["max_length"] = preprocess.max_length
    else:
        recipe["image"] = dataclasses.asdict(preprocess)
    names = tuple(str(n) for _, n in sorted(net.config.id2label.items()))
    named = not all(n == f"LABEL_{i}" for i, n in enumerate(names))
    return Source(
        name=reference,
        backbone=backbone,
        head=head if recipe["head"] else None,
        blocks=blocks,
        preprocess=preprocess,
        features=features,
        labels=names if named and recipe["head"] else None,
        licence=recipe["licence"],
        recipe=recipe,
        example=inputs,
    )


def example(net: Any, preprocess: Preprocess) -> Any:
    """Two random pictures of the source's size, or two rows of eight tokens, one padded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if isinstance(preprocess, TextSpec):
        rows = net.get_input_embeddings().num_embeddings
        pad = net.config.pad_token_id or 0
        ids = torch.randint(0, rows, (2, 8), generator=generator)  # [B, T]
        ids[ids == pad] = (pad + 1) % rows
        mask = torch.ones_like(ids)
        ids[1, 5:], mask[1, 5:] = pad, 0
        return {"input_ids": ids, "attention_mask": mask}
    size = preprocess.size  # type: ignore[union-attr]
    return torch.randn(2, net.config.num_channels, *size, generator=generator)
