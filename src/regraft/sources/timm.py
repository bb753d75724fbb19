"""Any timm model: ``timm:resnet50.a1_in1k``.

The architecture is built without weights; the weights come from ``options.weights`` or from the
hub (or its cache) and pass the same gate as any file. The classifier becomes the head.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, did_you_mean
from ..types import ImageSpec, Source, SourceOptions

if TYPE_CHECKING:
    from torch import nn

    from ._weights import Weights


def load(name: str, options: SourceOptions) -> Source:
    """The named model with its weights. Raises SourceError where either cannot be had or split."""
    from . import _weights

    model = create(name, options)
    classifier_name(model, f"timm:{name}")  # a refusal comes before a download
    weights = _weights.read(options.weights) if options.weights else fetch(model, name, options)
    notes = normalisation(model, options.weights) if options.weights else ()
    source = assemble(model, f"timm:{name}", weights, options)
    source.notes += notes
    return source


def assemble(model: nn.Module, reference: str, weights: Weights, options: SourceOptions) -> Source:
    """A source from an architecture and the tensors of a file."""
    from . import _weights

    where = str(options.weights or reference)
    expected = model.state_dict()
    head = classifier_name(model, reference)
    tensors, stripped = _weights.strip_prefixes(weights.tensors, expected)
    tensors = in_timm_names(model, tensors)
    tensors, resized = adapt_stem(model, tensors)
    found = _weights.match(
        expected,
        tensors,
        where=where,
        head=head or "",
        allow_fresh=options.allow_fresh,
        resized=resized,
    )
    model.load_state_dict(found.state, strict=False)
    source = split(model, reference, head if found.head_kept else None, head)
    source.digest = weights.digest
    source.report = tuple(found.report)
    source.notes += (*weights.notes, *stripped)
    if head and not found.head_kept:
        source.notes += (f"{where} has no {head} of this shape: the source has no head",)
    return source


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """The same architecture with random weights; nothing is fetched."""
    from . import _image

    spec = _image.from_recipe(recipe["image"])
    options = SourceOptions(in_channels=spec.channels, image_size=spec.size[0])
    model = create(recipe["architecture"], options)
    head = classifier_name(model, recipe["architecture"])
    source = split(model, recipe["architecture"], head if recipe["num_classes"] else None, head)
    source.licence = recipe["licence"]
    source.preprocess = spec
    source.recipe = recipe
    return source


def create(name: str, options: SourceOptions) -> nn.Module:
    """The architecture with timm's random weights, in eval mode.

    Raises SourceError for an unknown name or channels that the architecture cannot take.
    """
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise SourceError(f'timm has no "{base}"; {did_you_mean(base, timm.list_models())}')
    how: dict[str, Any] = {} if options.in_channels is None else {"in_chans": options.in_channels}
    if options.image_size is not None:
        side = options.image_size
        how["pretrained_cfg_overlay"] = {"input_size": (3, side, side), "pool_size": None}
    try:
        model = timm.create_model(name, pretrained=False, **how)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SourceError(f"timm:{name} cannot be built ({error})") from error
    return model.eval()  # type: ignore[no-any-return]


def classifier_name(model: Any, reference: str) -> str | None:
    """The dotted name of the classifier; None for a model without one.

    Raises SourceError for a tuple of classifiers: which one is the head is not ours to choose.
    """
    from torch import nn

    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.ModuleList):
        raise SourceError(f"{reference}: refused, it has several heads; choose one with a single")
    if isinstance(classifier, nn.Identity):
        return None
    names = {id(m): str(n) for n, m in model.named_modules()}
    return names[id(classifier)]


def fetch(model: Any, name: str, options: SourceOptions) -> Weights:
    """Weights from the hub or its cache. Raises SourceError with the remedy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from . import _weights

    remedy = f"remedy: --weights FILE with the weights of {name}"
    config = model.pretrained_cfg
    repository = config.get("hf_hub_id")
    if not repository or config.get("custom_load"):
        raise SourceError(f"timm:{name} has no weights on the hub; {remedy}")
    files = (config.get("hf_hub_filename") or "model.safetensors", "pytorch_model.bin")
    reason: Exception | None = None
    for file in files:
        try:
            path = hf_hub_download(repository, file, local_files_only=options.offline)
            return _weights.read(Path(path))
        except EntryNotFoundError as error:  # also LocalEntryNotFoundError
            reason = error
        except Exception as error:  # the hub raises as many kinds as there are network faults
            if isinstance(error, SourceError):
                raise
            reason = error
            break
    raise SourceError(
        f"timm:{name}: weights not in the cache and not fetched; {remedy}"
    ) from reason


def normalisation(model: Any, weights: Path) -> tuple[str, ...]:
    """What pictures are normalised by under weights of one's own, in words: what a config.json beside
    the file says (timm and the hub write one), else what timm says of the architecture.

    Raises SourceError for a config.json whose numbers mean nothing.
    """
    from . import _folder

    keys, mine = ("mean", "std"), model.pretrained_cfg
    beside = weights.parent / "config.json"
    found = _folder.read_json(beside)
    config = found.get("pretrained_cfg") if isinstance(found, dict) else None
    if not isinstance(config, dict) or not config.keys() & set(keys):
        return (
            f"{weights.name} does not say how its pictures were normalised: mean {mine['mean']} and std "
            f"{mine['std']} are those of timm's {mine['architecture']}",
        )
    theirs = {k: config.get(k, mine[k]) for k in keys}
    for key, value in theirs.items():
        try:
            numbers = tuple(float(v) for v in value)
        except (TypeError, ValueError):
            numbers = ()
        finite = all(math.isfinite(v) and (v > 0 or key == "mean") for v in numbers)
        if len(numbers) != len(mine[key]) or not finite:
            raise SourceError(
                f"{beside}: pretrained_cfg.{key} is {value}, not {len(mine[key])} numbers"
            )
        theirs[key] = numbers
    other = [
        f"{k} {theirs[k]} and not {tuple(mine[k])}" for k in keys if theirs[k] != tuple(mine[k])
    ]
    mine.update(theirs)
    if not other:
        return ()
    return (f"pictures are normalised as {beside} says, unlike timm's own: {', '.join(other)}",)


def in_timm_names(model: nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """Weights of an original repository under timm's names, by timm's own converter if any."""
    import sys

    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or set(model.state_dict()) <= set(tensors):
        return tensors
    try:
        return dict(convert(dict(tensors), model))
    except (KeyError, RuntimeError, AttributeError, TypeError):
        return tensors  # not a file the converter knows: the gate says what is missing


def adapt_stem(model: Any, tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The first convolution for the model's channels, as timm adapts it; and what was resized."""
    from timm.models import adapt_input_conv

    expected, resized = model.state_dict(), {}
    stems = model.pretrained_cfg.get("first_conv") or ()
    for stem in (stems,) if isinstance(stems, str) else stems:
        name = f"{stem}.weight"
        if name not in tensors or tensors[name].ndim != 4:
            continue
        had, wants = tensors[name].shape[1], expected[name].shape[1]
        if had == 3 and wants != had:
            tensors = {**tensors, name: adapt_input_conv(wants, tensors[name])}
            resized[name] = f"{had} to {wants} input channels"
    return tensors, resized


def split(model: Any, reference: str, head: str | None, classifier: str | None) -> Source:
    """Backbone, head and blocks of a model, proved by a forward pass of a random batch of two.

    ``classifier`` is what is taken off the model, ``head`` what is kept of it (None: nothing).
    """
    import torch
    from torch import nn

    from . import _blocks, _image, _timm_blocks

    spec, notes = image_spec(model)
    taken = model.get_submodule(classifier) if classifier else None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, spec.channels, *spec.size, generator=generator)
    with torch.no_grad():
        expected = model(x)  # [2, C]
    if classifier:
        model.set_submodule(classifier, nn.Identity())
    groups = _timm_blocks.group(model)
    runs = _blocks.runs_of(_timm_blocks.forward_steps(model), groups)
    blocks = _blocks.partition(model, groups, runs)
    features, blocks = _blocks.prove(model, taken, blocks, x, expected, reference)
    classes = expected.shape[1] if head else 0
    labels, words = imagenet_classes() if classes == 1000 else (None, None)
    config = model.pretrained_cfg
    return Source(
        name=reference,
        backbone=model,
        head=taken if head else None,
        blocks=blocks,
        preprocess=spec,
        features=features,
        labels=labels,
        words=words,
        licence=config.get("license") or "unknown",
        recipe={
            "source": "timm",
            "architecture": reference.removeprefix("timm:").partition(".")[0]
            if not config.get("architecture")
            else ".".join(filter(None, (config["architecture"], config.get("tag")))),
            "in_channels": spec.channels,
            "num_classes": classes,
            "image": _image.to_recipe(spec),
            "licence": config.get("license") or "unknown",
        },
        notes=notes,
    )


def image_spec(model: Any) -> tuple[ImageSpec, tuple[str, ...]]:
    """timm's evaluation transform: shorter side to floor(size / crop_pct), centre crop."""
    from timm.data import resolve_model_data_config

    from . import _image

    config = resolve_model_data_config(model)
    _, height, width = config["input_size"]
    resize = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if config["crop_mode"] == "border" or (config["crop_mode"] == "center" and height != width):
        raise SourceError(f'crop mode "{config["crop_mode"]}" at {height}x{width} is not supported')
    squash = config["crop_mode"] == "squash"
    spec = ImageSpec(
        size=(height, width),
        resize=(resize[0], resize[1]) if squash else resize[0],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    spec, note = _image.with_channels(spec, getattr(model, "in_chans", None) or channels(model))
    return spec, (note,) if note else ()


def channels(model: Any) -> int:
    """Picture channels, from the first convolution (the only place that timm keeps them)."""
    from torch import nn

    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


@cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 1000 WordNet ids of ImageNet in output order, which unlike the words are unique, and what
    they stand for, synonyms separated by commas."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    ids = tuple(info.index_to_label_name(i) for i in range(1000))
    return ids, tuple(info.index_to_description(i) for i in range(1000))
