"""Any transformers encoder: ``transformers:NAME_OR_FOLDER``.

A ``…ForSequenceClassification`` or ``…ForImageClassification`` keeps its head. Any other class becomes a plain encoder
with pooling. A sentence-transformers folder gives its own pooling and dense layers, but not a last Normalize: the
probe standardises features anyway. On unit vectors the logits of a linear head (|w·x| ≤ ‖w‖) are small at the learning
rates that suit the backbone. regraft never runs remote code.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..compute.arrays import Kind
from ..data.types import Preprocess, TextSpec
from ..errors import RegraftError, SourceError
from ..io import foreign_code
from ..model.types import LoadedTensor, Source, SourceOptions
from . import _architectures, _blocks, _budget, _encoders, _folder, _image, _sentence, _weights
from ._budget import Size
from ._cached import cached_repositories
from ._sentence import Sentence
from ._weights import Match, Weights

INPUTS = ("input_ids", "pixel_values")  # main inputs that regraft makes: texts and pictures


def load(name: str, options: SourceOptions) -> Source:
    """Return the model of a folder or of the hub. Raises SourceError where it cannot be loaded or split."""
    folder = _folder.find(name, options.offline)
    try:
        return from_folder(folder, f"transformers:{name}", options)
    except RegraftError:
        raise
    except Exception as error:  # the library raises many kinds of error for unknown values
        raise SourceError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {error}); regraft does not know a value in "
            "its JSON files: fetch the folder again, or write it again with save_pretrained"
        ) from error


def local(kind: Kind) -> Iterator[str]:
    """Yield the names of models for inputs of a kind that are in the hub's cache, by the files beside the weights."""
    beside = {"image": {"preprocessor_config.json"}, "text": {"tokenizer_config.json", "tokenizer.json", "vocab.txt"}}
    for repository, files in cached_repositories():
        if "config.json" in files and beside.get(kind, set()) & files and not repository.startswith("timm/"):
            yield repository


def from_folder(folder: Path, reference: str, options: SourceOptions) -> Source:
    """Return the source of a local folder. Raises SourceError where it cannot be loaded or split."""
    sentence = _sentence.read(folder)
    inside = sentence.encoder
    values = _folder.read_json(inside / "config.json")
    if not values:
        raise SourceError(f"{inside}: no config.json{_folder.describe_other_kind(inside)}")
    for place in {folder, inside}:
        foreign_code.refuse(place)
    choice = _architectures.choose(values, bool(_folder.picture_values(inside)), reference)
    recipe: dict[str, Any] = {
        "source": "transformers",
        "auto": choice.auto,
        "class": choice.named,
        "config": choice.config,
        "after": sentence.steps if choice.auto == "AutoModel" else [],
    }
    key = options.weights_key
    weights = _weights.read(options.weights, key=key) if options.weights else _folder.weights(inside)
    net = skeleton(recipe, reference, _budget.size_of(weights.tensors))
    image: bool = check_input(net, reference)
    if choice.tower:
        tensors = _architectures.in_tower(weights.tensors, choice.tower, net.state_dict())
        weights = replace(weights, tensors=tensors)
    net, matched, notes = fill(net, weights, recipe, str(options.weights or inside), options)
    text_notes: tuple[str, ...] = ()
    preprocess: Preprocess
    if image:
        channels = _folder.channels(net.config)
        if options.in_channels not in (None, channels):
            raise SourceError(f"{reference} takes {channels} channels, not {options.in_channels}")
        preprocess = _folder.image_spec(inside, net.config)
    else:
        preprocess, text_notes, pads = _folder.text_spec(inside, net, options.max_length)
        recipe |= pads
    recipe["config"] = net.config.to_dict()
    recipe["pooling"] = pooling(net, sentence, options.pooling, preprocess)
    recipe["head"] = matched.head_kept
    recipe["licence"] = _folder.licence(folder)
    try:
        source = split(net, recipe, preprocess, reference)
        rows = example(net, preprocess, recipe.get("pad"))
        unmasked = _encoders.sees_padding(source.backbone, rows)
    except (ValueError, RuntimeError) as error:
        if not image:
            raise _encoders.input_error(net, {}, error, reference) from error
        sides = " × ".join(map(str, preprocess.size))  # type: ignore[union-attr]
        raise SourceError(
            f"{folder}: preprocessor_config.json asks for pictures of {sides} pixels, which the model "
            f"refuses ({error}): correct one of them"
        ) from error
    if unmasked:
        text_notes += (f"{type(net).__name__} does not mask padding: a text's features depend on the texts beside it",)
    head = f"{recipe['head_name']}."
    source.digest = weights.digest
    source.report = tuple(
        t if t.state == "unused" or t.name.startswith(head) else LoadedTensor(f"net.{t.name}", t.state, t.shape, t.note)
        for t in matched.report
    )
    if recipe["after"]:
        fill_after(source, sentence)
    source.notes = (*weights.notes, *choice.notes, *notes, *text_notes, *sentence.notes)
    return source


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Return the same architecture with random weights. The tokenizer's files are in folder/tokenizer."""
    size = _budget.size_in(folder / "model.safetensors")
    small = skeleton(dict(recipe), str(folder), size)  # check the size on the meta device, without memory
    net = skeleton(recipe, str(folder), size, meta=False)
    image = recipe.get("image")
    spec: Preprocess
    if image:
        spec = _image.from_recipe(image)
    else:
        limit = _folder.positions(small) or _folder.MAX_TOKENS
        length = recipe["max_length"]
        if type(length) is not int or not 1 <= length <= limit:
            raise SourceError(
                f"{folder}: its recipe cuts texts at {length!r:.40} tokens, and the network takes 1 to {limit:,}"
            )
        spec = TextSpec(str(folder / "tokenizer"), length)
    return split(net, recipe, spec, str(folder))


def save_files(source: Source, folder: Path) -> None:
    """Save the files that ``build`` needs beside the recipe: the tokenizer's, in folder/tokenizer."""
    if isinstance(source.preprocess, TextSpec):
        _folder.copy_tokenizer(Path(source.preprocess.tokenizer), folder / "tokenizer")


def skeleton(recipe: dict[str, Any], reference: str, size: Size, meta: bool = True) -> Any:
    """Return the architecture, on the meta device (no memory, no values) unless ``meta`` is false.

    A plain encoder is built without the pooler where the class allows it. A random pooler would be trained and saved
    without use. Raises SourceError for an architecture that is far larger than ``size``.
    """
    values = dict(recipe["config"])
    kind = values.pop("model_type", "")
    if recipe["auto"] not in ("AutoModel", *_architectures.HEADED.values()):
        raise SourceError(f"{reference}: refused, its recipe asks for code of its own")
    if key := foreign_code.find_code_key(values):
        raise SourceError(
            f'{reference}: refused, nothing executed: its recipe\'s "{key}" names Python code; remedy: '
            "fit again from a source without it"
        )
    _architectures.refuse_elsewhere(recipe["config"], reference)
    _budget.check_counts(values, reference)
    family = _architectures.config_class(kind, reference)
    named = recipe.get("class") or ""
    try:
        with _folder.quiet():
            config = transformers.AutoConfig.for_model(kind, **values)
        if getattr(config, "backbone_config", None) is not None:
            raise ValueError(f"{kind} is a network around another one")
        if named:
            auto = _architectures.model_class(family, named)
            make = auto._from_config
        else:
            of_kind = getattr(transformers, recipe["auto"])
            make = partial(of_kind.from_config, trust_remote_code=False)
        config.dtype = torch.float32
        for part in (config, config.get_text_config()):
            if getattr(part, "use_cache", False):  # the key-value cache is for generating text
                part.use_cache = False
        device = torch.device("meta" if meta else "cpu")
        with _folder.quiet(), device, _budget.bounded(size, reference):
            try:
                net = make(config, **extra(recipe))
            except TypeError:  # a class without add_pooling_layer
                recipe["plain"] = True
                net = make(config)
    except SourceError:
        raise
    except Exception as error:  # configurations raise errors of many kinds
        raise SourceError(f'{reference}: "{kind}" cannot be built ({error})') from error
    _budget.check_size(net, size, reference)
    recipe["head_name"] = _architectures.head_of(net, reference) if recipe["auto"] != "AutoModel" else ""
    return net.eval()


def extra(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that build a plain encoder without its pooler."""
    headed = recipe["auto"] != "AutoModel" or recipe.get("plain")
    return {} if headed else {"add_pooling_layer": False}


def check_input(net: Any, reference: str) -> bool:
    """Return whether the model takes pictures. Raises SourceError where it takes other inputs or needs more."""
    main, name = net.main_input_name, type(net).__name__
    if main not in INPUTS:
        raise SourceError(f"{reference}: refused, {name} takes {main}, neither texts nor pictures")
    children = {n for n, _ in getattr(net, "base_model", net).named_children()}
    if {"encoder", "decoder"} <= children:
        raise SourceError(f"{reference}: refused, {name} is an encoder and a decoder")
    if net.config.model_type == "reformer":
        raise SourceError(f"{reference}: refused, {name} trains on rows of one fixed length only and hashes at random")
    if getattr(net.config, "num_frames", None):
        raise SourceError(f"{reference}: refused, {name} takes videos, not pictures")
    tower = getattr(net, "vision_model", net)  # a head's forward passes these inputs to the encoder
    needs = [
        p.name
        for module in (net, tower)
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD and p.name != main
    ]
    if needs:
        raise SourceError(
            f"{reference}: refused, {name} needs {', '.join(needs)} beside {main}, which regraft does not make"
        )
    return bool(main == "pixel_values")


def fill(
    net: Any, weights: Weights, recipe: dict[str, Any], where: str, options: SourceOptions
) -> tuple[Any, Match, tuple[str, ...]]:
    """Return (model with weights, what became of every tensor, notes).

    transformers renames the tensors of old files. The tensors that it calls missing, of another shape or unexpected
    then pass the same checks as any source.
    """
    tensors, notes = _weights.strip_prefixes(weights.tensors, net.state_dict())
    with _folder.quiet():
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
    expected = net.state_dict()
    mismatched = {name: shape for name, shape, *_ in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) - set(mismatched)
    read: dict[str, Tensor] = {n: t for n, t in expected.items() if n not in missing}
    read |= {n: torch.empty(tuple(s), device="meta") for n, s in mismatched.items()}
    unexpected = {n for n in tensors if n.endswith("position_ids") and n not in expected}
    read |= {n: tensors.get(n, torch.empty(0)) for n in {*info["unexpected_keys"], *unexpected}}
    matched = _weights.match(expected, read, where=where, head=recipe["head_name"], allow_fresh=options.allow_fresh)
    return net.eval(), matched, notes


def pooling(net: Any, sentence: Sentence, wanted: str, preprocess: Preprocess) -> str:
    """Return the pooling: the plan's, else the sentence-transformers folder's, else the model's own, else the usual
    one.

    The usual one is the first token for pictures with a class token, and the mean for anything else.
    """
    if wanted != "auto":
        return wanted
    if sentence.pooling:
        return sentence.pooling
    if isinstance(preprocess, TextSpec):
        return "own" if net.config.model_type.endswith("_text_model") else "auto"
    class_token = any(n.endswith("cls_token") for n, _ in net.named_parameters())
    return "own" if not class_token else "cls"


def split(net: Any, recipe: dict[str, Any], preprocess: Preprocess, reference: str) -> Source:
    """Return the source: backbone, head and blocks, proved by a forward pass of a random batch of two."""
    inputs = example(net, preprocess, recipe.get("pad"))
    expected, head = None, None
    if recipe["auto"] != "AutoModel":
        name = recipe["head_name"]
        expected, alone = logits(net, inputs, reference)
        head = net.get_submodule(name)
        net.set_submodule(name, nn.Identity())
        if alone:  # pool the last token by the mask, which marks padding
            net = net.base_model
        elif _encoders.tokens_to_head(net, inputs):
            head = _encoders.TokenHead(head)
        recipe["pooling"] = "last" if alone else "head"
    else:
        recipe["pooling"] = _encoders.choose_pooling(net, inputs, recipe["pooling"], reference)
    _sentence.check_steps(recipe.get("after") or [], reference)
    backbone = _encoders.Encoder(
        net,
        recipe["pooling"],
        recipe.get("after") or (),
        left=recipe.get("padding_side") == "left" and net.config.model_type != "xlnet",
    ).eval()
    blocks = _encoders.blocks(backbone)
    features, blocks = _blocks.prove(backbone, head, blocks, inputs, expected, reference)
    if isinstance(preprocess, TextSpec):
        recipe["max_length"] = preprocess.max_length
    else:
        recipe["image"] = asdict(preprocess)
    names = tuple(str(n) for _, n in sorted((net.config.id2label or {}).items()))
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


def logits(net: Any, inputs: Any, reference: str) -> tuple[Tensor, bool]:
    """Return the model's own logits, and whether rows must be given one at a time.

    A decoder whose config names no padding token refuses several rows. A decoder whose config names another padding
    token than the tokenizer reads padding as text.
    """

    def answer(batch: Any) -> Tensor:
        out = _encoders.call_model(net, batch, reference)
        if getattr(out, "logits", None) is None:
            raise SourceError(f"{reference}: refused, {type(net).__name__} gives no logits")
        return out.logits  # type: ignore[no-any-return]

    with torch.no_grad():
        if isinstance(inputs, torch.Tensor):
            return answer(inputs), False
        pad, batched = own_pad(net), None
        try:
            batched = answer(inputs)
        except ValueError:
            if pad is not None:
                raise
        padded = inputs["attention_mask"] == 0
        if batched is not None and pad == int(inputs["input_ids"][padded][0]):
            return batched, False
        lengths = inputs["attention_mask"].sum(1).tolist()
        rows = [{k: v[i : i + 1, :n] for k, v in inputs.items()} for i, n in enumerate(lengths)]
        separate = torch.cat([answer(row) for row in rows])
        if batched is not None and torch.allclose(batched, separate, rtol=1e-4, atol=1e-5):
            return batched, False
        return separate, True


def own_pad(net: Any) -> int | None:
    """Return the token that the model itself uses for padding, or None."""
    pad = getattr(net.config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) else None


def fill_after(source: Source, sentence: Sentence) -> None:
    """Fill the dense layers behind the pooling with their weights, with the checks of any source."""
    layers: Any = source.backbone
    digests = [source.digest]
    indices = [i for i, step in enumerate(source.recipe["after"]) if step]
    for index, folder in zip(indices, sentence.dense, strict=True):
        weights = _folder.weights(folder)
        layer = layers.after[index]
        matched = _weights.match(layer.state_dict(), weights.tensors, where=str(folder))
        layer.load_state_dict(matched.state)
        digests.append(weights.digest)
        source.report += tuple(
            LoadedTensor(f"after.{index}.{t.name}", t.state, t.shape, t.note) for t in matched.report
        )
    source.digest = hashlib.sha256("".join(digests).encode()).hexdigest()


def example(net: Any, preprocess: Preprocess, pad: int | None = None) -> Any:
    """Return two random pictures of the source's size, or two rows of eight tokens, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(preprocess, TextSpec):
        rows = _folder.tokens_of(net) or 256
        pad = pad if pad is not None else own_pad(net) or 0
        ids = torch.randint(0, rows, (2, 8), generator=generator)  # [B, T]
        ids[ids == pad] = (pad + 1) % rows
        mask = torch.ones_like(ids)
        ids[1, 5:], mask[1, 5:] = pad, 0
        return {"input_ids": ids, "attention_mask": mask}
    size = preprocess.size  # type: ignore[union-attr]
    return torch.randn(2, _folder.channels(net.config), *size, generator=generator)
