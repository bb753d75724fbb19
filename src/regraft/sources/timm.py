"""Any timm model: ``timm:resnet50.a1_in1k``, ``timm:local-dir:FOLDER``, ``timm:hf-hub:OWNER/NAME``.

regraft builds the architecture without weights. The weights come from ``options.weights`` or from the hub (or its
cache) and pass the same checks as any file. The classifier becomes the head.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.models import _builder, adapt_input_conv
from torch import Tensor, nn

from ..compute.arrays import Kind
from ..errors import SourceError, did_you_mean, shorten
from ..model.types import Block, Source, SourceOptions
from . import _blocks, _budget, _folder, _image, _timm, _weights
from ._cached import cached_repositories
from ._weights import Weights

# Options that name files which timm would open, whatever its version, and all others of create_model itself.
FILE_OPTIONS = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")
TIMM_OPTIONS = frozenset({*FILE_OPTIONS, *inspect.signature(timm.create_model).parameters, "features_only"})


def load(name: str, options: SourceOptions) -> Source:
    """Return the named model with its weights. Raises SourceError where it cannot be loaded or split."""
    built = create(name, options)
    source_folder = built.folder
    if options.weights_key and not options.weights and source_folder is None:
        raise SourceError("source.weights_key needs a weights file: name it with --weights FILE")
    file = options.weights or (weights_of(source_folder) if source_folder else None)
    expected = built.model.state_dict()
    weights = _weights.read(file, expected, options.weights_key) if file else fetch(built.model, name, options)
    notes = set_normalisation(built.model, options.weights) if options.weights else ()
    source = assemble(built, f"timm:{name}", weights, options)
    source.notes += notes
    return source


def local(kind: Kind) -> Iterator[str]:
    """Yield the names of models for inputs of a kind whose weights are in the hub's cache."""
    for repository, _ in cached_repositories() if kind == "image" else ():
        owner, _, name = repository.partition("/")
        if owner == "timm" and timm.is_model(name.partition(".")[0]):
            yield name


def assemble(built: Built, reference: str, weights: Weights, options: SourceOptions) -> Source:
    """Return a source from an architecture and the tensors of a file."""
    model, where = built.model, str(options.weights or reference)
    expected = model.state_dict()
    heads = _timm.classifier_names(model)
    tensors, stripped = _weights.strip_prefixes(weights.tensors, expected, known=None)
    tensors, resized = built.converted(tensors, where)
    tensors, stem = adapt_stem(model, tensors)
    refuse_sizes(model, tensors, heads, where, options)
    matched = _weights.match(
        expected, tensors, where=where, head=heads, allow_fresh=options.allow_fresh, resized=resized | stem
    )
    model.load_state_dict(matched.state, strict=False)
    source = split(built, reference, matched.head_kept)
    source.digest = weights.digest
    source.report = tuple(matched.report)
    source.notes += (*weights.notes, *stripped)
    if heads and not matched.head_kept:
        source.notes += (f"{where} has no {heads[0]} of this shape: the source has no head",)
    return source


def refuse_sizes(
    model: nn.Module, tensors: dict[str, Any], heads: Sequence[str], where: str, options: SourceOptions
) -> None:
    """Raise SourceError with the remedy where a size or a number of channels does not fit the weights."""
    shapes = {n: t.shape for n, t in model.state_dict().items() if not n.startswith(tuple(heads))}
    wrong = [n for n, s in shapes.items() if n in tensors and tensors[n].shape != s]
    if not wrong or len(wrong) > len(shapes) / 2:
        return  # nothing is wrong, or match refuses another architecture
    pairs = [f"{n} {tuple(tensors[n].shape)} not {tuple(shapes[n])}" for n in wrong]
    stems = [n for n in wrong if tensors[n].ndim == 4 and tensors[n].shape[0] == shapes[n][0]]
    had = tensors[stems[0]].shape[1] if stems else 0
    remedy = (
        f"timm does not resample them: leave out source.image_size {options.image_size}"
        if options.image_size
        else f"set source.in_channels={had} where its pictures have {had} channels"
        if had in (1, 2, 3, 4) and len(wrong) == 1
        else "they may be for another size of picture: set source.image_size to that size, or name the "
        "variant of the weights"
    )
    raise SourceError(f"{where}: {len(wrong)} shapes differ: {shorten(pairs, 3)}; {remedy}")


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Return the same architecture with random weights. Fetches nothing."""
    spec = _image.from_recipe(recipe["image"])
    size = recipe.get("image_size", spec.size[0])  # old recipes do not hold the requested size
    if size is not None and (type(size) is not int or not 1 <= size <= _image.MAX_SIDE_PIXELS):
        raise SourceError(f"{folder}: its recipe asks for pictures of {size!r:.40} pixels a side")
    options = SourceOptions(in_channels=spec.channels, image_size=size, offline=True)
    arguments = recipe.get("arguments") or {}
    if own := sorted(set(arguments) & TIMM_OPTIONS):
        raise SourceError(f"{folder}: refused, its recipe passes timm {shorten(own)}, which no run does")
    with _budget.bounded(_budget.size_in(folder / "model.safetensors"), str(folder), memory=True):
        built = create(recipe["architecture"], options, arguments)
    if built.folder or ":" in recipe["architecture"]:
        raise SourceError(f'{folder}: its recipe names no architecture ("{recipe["architecture"]}")')
    built.headless = bool(recipe.get("headless"))
    source = split(built, recipe["architecture"], bool(recipe["num_classes"]))
    source.licence = recipe["licence"]
    source.preprocess = spec
    source.recipe = recipe
    return source


@dataclass
class Built:
    """An architecture with timm's random weights, in eval mode, and the arguments that built it."""

    model: Any
    convert: Callable[[dict[str, Any], Any], dict[str, Any]] | None  # timm's converter for its weights
    configuration: dict[str, Any]  # timm's configuration of the weights, before a change of size
    arguments: dict[str, Any]  # of a saved configuration
    image_size: int | None
    folder: Path | None = None  # FOLDER of local-dir:FOLDER
    headless: bool = False  # True where its heads are no function of the features

    def converted(self, tensors: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the weights under timm's names and in the model's sizes, and which were resized, with how.

        timm's own converter resamples tables that depend on the size of pictures, such as positions. Raises
        SourceError where it fails on weights that have the model's names.
        """
        expected = {n: t.shape for n, t in self.model.state_dict().items()}
        named = expected.keys() <= tensors.keys()
        if self.convert is None or (named and all(tensors[n].shape == s for n, s in expected.items())):
            return tensors, {}
        now, self.model.pretrained_cfg = self.model.pretrained_cfg, self.configuration
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns about the speed of searchsorted
                converted = dict(self.convert(dict(tensors), self.model))
        except Exception as error:  # converters raise errors of many kinds
            if named:
                raise SourceError(
                    f"{where}: timm cannot resample the weights ({type(error).__name__}: {error}); choose "
                    f"another source.image_size than {self.image_size}"
                ) from error
            return tensors, {}  # the converter does not know the file: match reports what is missing
        finally:
            self.model.pretrained_cfg = now
        resized = {
            n: f"{tuple(tensors[n].shape)} to {tuple(t.shape)}"
            for n, t in converted.items()
            if n in tensors and tensors[n].shape != t.shape
        }
        return converted, resized


def create(name: str, options: SourceOptions, arguments: dict[str, Any] | None = None) -> Built:
    """Return the architecture of a timm name, of local-dir:FOLDER or of hf-hub:REPOSITORY.

    Raises SourceError for an unknown name, or a size or channels that the architecture cannot take.
    """
    place, _, rest = name.partition(":")
    saved = place in ("local-dir", "hf-hub") and bool(rest)
    if not saved:
        refuse_unknown(name)
    elif place == "local-dir":
        check_folder(Path(rest), name)
    given: dict[str, Any] = dict(arguments or {})
    if options.in_channels is not None:
        given["in_chans"] = options.in_channels
    sized = {} if options.image_size is None else {"img_size": options.image_size}
    with record_converters() as converters:
        try:
            try:
                model = timm.create_model(name, pretrained=True, **(given | sized))
            except TypeError as error:
                if not sized or "img_size" not in str(error):
                    raise
                converters.clear()  # an architecture without img_size has no table that depends on it
                model = timm.create_model(name, pretrained=True, **given)
        except SourceError:
            raise
        except Exception as error:  # architectures raise errors of many kinds
            raise SourceError(describe_failure(name, options, error)) from error
    configuration = dict(model.pretrained_cfg)
    if options.image_size is not None:
        side = options.image_size
        size = {"input_size": (3, side, side), "pool_size": None, "test_input_size": None}
        model.pretrained_cfg = model.default_cfg = {**configuration, **size}
    stated = dict(getattr(model, "_model_args", {})) if saved else given
    return Built(
        model=model.eval(),
        convert=converters[-1] if converters else None,
        configuration=configuration,
        arguments={k: v for k, v in stated.items() if k != "in_chans" and k not in sized},
        image_size=options.image_size,
        folder=Path(rest) if place == "local-dir" else None,
    )


@contextmanager
def record_converters() -> Iterator[list[Any]]:
    """Let timm build models without weights inside the block, and record its converters for weights.

    timm binds a converter to options of its own when it loads weights, and offers no other access to it.
    """
    converters: list[Any] = []
    loads = _builder.load_pretrained

    def note(*_: Any, filter_fn: Any = None, **__: Any) -> None:
        converters.append(filter_fn)

    _builder.load_pretrained = note
    try:
        yield converters
    finally:
        _builder.load_pretrained = loads


def refuse_unknown(name: str) -> None:
    """Raise SourceError for a name that timm does not have; the message has the nearest names."""
    base, _, tag = name.partition(".")
    if "/" in name or "\\" in name:
        raise SourceError(
            f"timm:{shorten([name])} is not a timm name: write timm:local-dir:FOLDER for a folder, "
            "timm:hf-hub:OWNER/NAME for the hub"
        )
    if not timm.is_model(base):
        raise SourceError(f'timm has no "{base}"; {did_you_mean(base, timm.list_models())}')
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
        raise SourceError(f'timm\'s {base} has no weights "{tag}"; {did_you_mean(tag, tags)}') from error


def check_folder(folder: Path, name: str) -> None:
    """Raise SourceError for a folder that timm did not write, or whose architecture timm does not have."""
    path = folder / "config.json"
    if not path.is_file():
        raise SourceError(f"timm:{name}: no config.json in the folder; write one with timm's save_for_hf")
    config = _folder.read_json(path)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        hint = did_you_mean(str(architecture), timm.list_models())
        raise SourceError(f'{path}: architecture "{architecture}" is not one of timm\'s; {hint}')


def weights_of(folder: Path) -> Path:
    """Return the weights file of a folder that timm wrote. Raises SourceError for none, or several."""
    for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"):
        if (folder / name).is_file():
            return folder / name
    files = sorted(p for e in ("safetensors", "pth", "bin") for p in folder.glob(f"*.{e}"))
    if len(files) != 1:
        names_found = shorten([p.name for p in files]) or "none"
        raise SourceError(f"{folder}: one weights file expected, there are: {names_found}; remedy: --weights FILE")
    return files[0]


def describe_failure(name: str, options: SourceOptions, error: Exception) -> str:
    """Return why timm could not build a model, as a sentence."""
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= 300 else f"{reason[:300]} …"
    if name.startswith("hf-hub:") and not isinstance(error, ValueError | TypeError | KeyError):
        return (
            f"timm:{name}: its config.json is not in the cache, and fetching failed ({type(error).__name__}); "
            "remedy: fetch the repository to a folder and name it as timm:local-dir:FOLDER"
        )
    if options.image_size is not None:
        side = options.image_size
        return f"timm:{name} cannot take pictures of {side} × {side} ({reason}); choose another source.image_size"
    return f"timm:{name} cannot be built ({reason})"


def fetch(model: Any, name: str, options: SourceOptions) -> Weights:
    """Return weights from the hub or its cache. Raises SourceError with the remedy."""
    remedy = f"remedy: --weights FILE with the weights of {name}"
    config = model.pretrained_cfg
    repository = config.get("hf_hub_id")
    if not repository or config.get("custom_load"):
        raise SourceError(f"timm:{name} has no weights on the hub; {remedy}")
    repository, _, revision = repository.partition("@")
    files = (config.get("hf_hub_filename") or "model.safetensors", "pytorch_model.bin")
    reason: Exception | None = None
    for file in files:
        try:
            path = hf_hub_download(repository, file, revision=revision or None, local_files_only=options.offline)
            return _weights.read(Path(path), model.state_dict(), options.weights_key)
        except EntryNotFoundError as error:  # also LocalEntryNotFoundError
            reason = error
        except Exception as error:  # the hub raises many kinds of error for network faults
            if isinstance(error, SourceError):
                raise
            reason = error
            break
    raise SourceError(f"timm:{name}: weights are not in the cache, and fetching failed; {remedy}") from reason


def set_normalisation(model: Any, weights: Path) -> tuple[str, ...]:
    """Set mean and std of the model's pictures for a weights file, and return notes on them.

    They come from a config.json beside the file (timm and the hub write one), else from timm's architecture. Raises
    SourceError for a config.json with unusable numbers.
    """
    keys, own = ("mean", "std"), model.pretrained_cfg
    beside = weights.parent / "config.json"
    content = _folder.read_json(beside)
    config = content.get("pretrained_cfg") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not config.keys() & set(keys):
        return (
            f"{weights.name} does not say how its pictures were normalised: regraft uses mean {own['mean']} and "
            f"std {own['std']} of timm's {own['architecture']}",
        )
    stored = {k: config.get(k, own[k]) for k in keys}
    for key, value in stored.items():
        try:
            numbers = tuple(float(v) for v in value)
        except (TypeError, ValueError):
            numbers = ()
        finite = all(math.isfinite(v) and (v > 0 or key == "mean") for v in numbers)
        if len(numbers) != len(own[key]) or not finite:
            raise SourceError(f"{beside}: pretrained_cfg.{key} is {value}, not {len(own[key])} numbers")
        stored[key] = numbers
    differences = [f"{k} {stored[k]} and not {tuple(own[k])}" for k in keys if stored[k] != tuple(own[k])]
    own.update(stored)
    if not differences:
        return ()
    return (f"pictures are normalised as {beside} says, unlike timm's own: {', '.join(differences)}",)


def adapt_stem(model: Any, tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors with the first convolution adapted to the model's channels as timm does, and what was
    resized."""
    expected, resized = model.state_dict(), {}
    stems = model.pretrained_cfg.get("first_conv") or ()
    for stem in (stems,) if isinstance(stems, str) else stems:
        name = f"{stem}.weight"
        if name not in tensors or name not in expected or tensors[name].ndim != 4:
            continue
        had, wants = tensors[name].shape[1], expected[name].shape[1]
        if had == 3 and wants != had:
            tensors = {**tensors, name: adapt_input_conv(wants, tensors[name])}
            resized[name] = f"{had} to {wants} input channels"
    return tensors, resized


def split(built: Built, reference: str, head_kept: bool) -> Source:
    """Return the source of a model: backbone, head and blocks, proved by a forward pass of a random batch of two.

    Where the output is no function of the features, the source has no head, and a note says so.
    """
    model = built.model
    spec, notes = _timm.image_spec(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, spec.channels, *spec.size, generator=generator)
    taken, features, blocks, classes = body(built, reference, x)
    if built.headless:
        notes += (f"{reference}: its heads are no function of its features: the source has no head",)
    classes = classes if head_kept and taken is not None else 0
    labels, words, class_notes = _timm.class_names(model, classes)
    config = model.pretrained_cfg
    return Source(
        name=reference,
        backbone=model,
        head=taken if classes else None,
        blocks=blocks,
        preprocess=spec,
        features=features,
        labels=labels,
        words=words,
        licence=config.get("license") or "unknown",
        example=x,
        recipe={
            "source": "timm",
            "architecture": reference.removeprefix("timm:").partition(".")[0]
            if not config.get("architecture")
            else ".".join(filter(None, (config["architecture"], config.get("tag")))),
            "in_channels": spec.channels,
            "num_classes": classes,
            "image": asdict(spec),
            "image_size": built.image_size,
            "arguments": built.arguments,
            "headless": built.headless,
            "licence": config.get("license") or "unknown",
        },
        notes=notes + class_notes,
    )


def body(built: Built, reference: str, x: Tensor) -> tuple[nn.Module | None, int, tuple[Block, ...], int]:
    """Return (head, D, blocks, C), and leave a model that returns its features."""
    model = built.model
    names = _timm.classifier_names(model)
    expected = forward(built, reference, x)
    if built.headless:
        model.reset_classifier(0)
        return None, *prove_split(model, None, reference, x, None), 0
    whole = {n: model.get_submodule(n) for n in names}
    try:
        head = _timm.take_off(model, names, x)
        return head, *prove_split(model, head, reference, x, expected), expected.shape[-1]
    except (SourceError, RuntimeError, KeyError) as error:
        refusal = error
    for name, module in whole.items():
        model.set_submodule(name, module)
    try:
        model.reset_classifier(0)
        result = None, *prove_split(model, None, reference, x, None), 0
    except Exception:  # reset_classifier fails too, so raise the first error
        if isinstance(refusal, SourceError):
            raise refusal from None
        raise SourceError(f"{reference}: refused, its head does not come last ({refusal})") from refusal
    built.headless = True
    return result


def prove_split(
    model: Any, head: nn.Module | None, reference: str, x: Tensor, expected: Tensor | None
) -> tuple[int, tuple[Block, ...]]:
    """Return (D, blocks) of a model that returns features. Raises SourceError for a wrong split."""
    groups = _timm.group(model, x)
    runs = _blocks.runs_of(_timm.forward_steps(model), groups)
    return _blocks.prove(model, head, _blocks.partition(model, groups, runs), x, expected, reference)


def forward(built: Built, reference: str, x: Tensor) -> Tensor:
    """Return the model's output. Raises SourceError for a picture size that the model does not take."""
    try:
        with torch.no_grad():
            output = built.model(x)
    except Exception as error:  # architectures raise errors of many kinds
        height, width = x.shape[-2:]
        reason = " ".join(str(error).split())[:300]
        own = " × ".join(map(str, built.configuration.get("input_size", ())[1:]))
        raise SourceError(
            f"{reference} cannot take pictures of {height} × {width} ({reason}); its own size is {own}; "
            "choose another source.image_size or leave it out"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise SourceError(f"{reference}: refused, its output is not one tensor")
    return output
