"""What a transformers folder says beside its weights: texts, pictures, pooling, licence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from ..errors import SourceError
from ..types import ImageSpec, TextSpec
from ._weights import Weights, read

TOKENIZER_FILES = (
    "config.json",  # the tokenizer's class, where its own configuration names none
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
RESAMPLE: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}  # Pillow's numbers


def read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """The object (or list) in it, or an empty one where there is no such file. Raises SourceError for
    one that is damaged."""
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise SourceError(f"{path}: damaged, {wanted} expected, it holds {value!r:.40}")
    return value


def find(name: str, offline: bool) -> Path:
    """A folder, or the hub's or its cache's copy. Raises SourceError with the remedy."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.codes", "README.md", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, local_files_only=offline, allow_patterns=patterns))
        if not list(folder.glob("*.safetensors")):
            patterns.append("pytorch_model*.bin")
            folder = Path(
                snapshot_download(name, local_files_only=offline, allow_patterns=patterns)
            )
    except Exception as error:  # the hub raises as many kinds as there are network faults
        raise SourceError(
            f"transformers:{name}: no such folder, not in the cache and not fetched; remedy: give "
            "a folder that holds the model"
        ) from error
    return folder


def weights(folder: Path) -> Weights:
    """The folder's tensors, safetensors first, whole or in shards."""
    import hashlib

    for file in ("model.safetensors", "pytorch_model.bin"):
        if (folder / file).is_file():
            return read(folder / file)
        index = read_json(folder / f"{file}.index.json")
        if index:  # shards are named without a folder: nothing outside this one is read
            shards = sorted({Path(s).name for s in index["weight_map"].values()})
            parts = [read(folder / shard) for shard in shards]
            digest = hashlib.sha256("".join(p.digest for p in parts).encode()).hexdigest()
            return Weights({n: t for p in parts for n, t in p.tensors.items()}, digest)
    raise SourceError(f"{folder}: no model.safetensors or pytorch_model.bin")


def pooling(folder: Path, wanted: str, image: bool, class_token: bool) -> str:
    """ "mean" or "cls": the plan's, else the sentence-transformers folder's, else the usual one."""
    if wanted != "auto":
        return wanted
    if read_json(folder / "modules.json", list):
        modes = read_json(folder / "1_Pooling" / "config.json")
        on = [k for k, v in modes.items() if k.startswith("pooling_mode_") and v]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if len(on) != 1 or on[0] not in known:
            raise SourceError(
                f"{folder}: pooling {on} is not supported; set pooling to mean or cls"
            )
        return known[on[0]]
    return "cls" if image and class_token else "mean"


def text_spec(folder: Path, net: Any, max_length: int | None) -> tuple[TextSpec, tuple[str, ...]]:
    """Tokenizer and length. Raises SourceError for no tokenizer or one with too many tokens."""
    from ..foreign_code import tokenizer_of

    tokenizer = tokenizer_of(str(folder))
    rows = net.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise SourceError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows}")
    limits = [tokenizer.model_max_length]
    limits += [
        v for v in [read_json(folder / "sentence_bert_config.json").get("max_seq_length")] if v
    ]
    positions = getattr(net.config, "max_position_embeddings", None)
    if positions and positions > 0:
        tables = (m for n, m in net.named_modules() if n.endswith("position_embeddings"))
        pad = getattr(next(tables, None), "padding_idx", None)  # RoBERTa counts from pad + 1
        limits.append(positions if pad is None else positions - pad - 1)
    limit = min(limits)
    limit = limit if limit < 1_000_000 else 512  # a tokenizer without a limit says 1e30
    if max_length is None or max_length <= limit:
        return TextSpec(str(folder), max_length or limit), ()
    return TextSpec(str(folder), limit), (f"max_length {max_length} is above the limit {limit}",)


def image_spec(folder: Path, config: Any) -> ImageSpec:
    """preprocessor_config.json. Raises SourceError where it says what regraft does not do."""
    p = read_json(folder / "preprocessor_config.json")
    if not p:
        raise SourceError(f"{folder}: no preprocessor_config.json, so mean, std, size are unknown")
    if p.get("do_normalize", True) and "image_mean" not in p:
        raise SourceError(f"{folder}: preprocessor_config.json has no image_mean")
    factor = p.get("rescale_factor", 1 / 255)
    if not p.get("do_rescale", True) or abs(factor - 1 / 255) > 1e-6:
        raise SourceError(f"{folder}: pictures rescaled otherwise than by 1/255")
    channels = config.num_channels
    if p.get("do_normalize", True):
        for key in ("image_mean", "image_std"):
            numbers = p.get(key)
            ok = isinstance(numbers, list) and all(isinstance(v, int | float) for v in numbers)
            if not ok or len(numbers) != channels or (key == "image_std" and min(numbers) <= 0):
                raise SourceError(
                    f"{folder}: preprocessor_config.json has {key} {numbers}, and the model takes "
                    f"{channels} channels: it needs a number for each"
                )
    side = config.image_size if isinstance(getattr(config, "image_size", None), int) else 224
    resize, shorter = sizes(p.get("size", side))
    crop = sizes(p["crop_size"])[0] if p.get("do_center_crop") and "crop_size" in p else None
    if shorter and "crop_pct" in p and resize[0] < 384:  # ConvNeXt: size is after the crop
        crop, resize = resize, (int(resize[0] / p["crop_pct"]),) * 2
    normal = p.get("do_normalize", True)
    return ImageSpec(
        size=crop or resize,
        resize=resize[0] if shorter and (crop or resize[0] < 384) else resize,
        interpolation=RESAMPLE.get(p.get("resample", 2), "bilinear"),
        mean=tuple(p["image_mean"]) if normal else (0.0,) * config.num_channels,
        std=tuple(p["image_std"]) if normal else (1.0,) * config.num_channels,
    )


def sizes(value: Any) -> tuple[tuple[int, int], bool]:
    """((height, width), whether it is the shorter side) from any of the library's forms."""
    if isinstance(value, int):
        return (value, value), False
    if isinstance(value, dict) and "shortest_edge" in value:
        return (value["shortest_edge"],) * 2, True
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        return (value["height"], value["width"]), False
    raise SourceError(f"picture size {value} is not supported")


def licence(folder: Path) -> str:
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = re.search(r"\A---\n.*?^license:\s*(\S+)", text, re.MULTILINE | re.DOTALL)
    return found.group(1) if found else "unknown"


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files, byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        if (source / file).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / file, target / file)
