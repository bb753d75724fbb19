"""Files of a transformers folder beside its weights: texts, pictures, pooling, licence."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..data.types import ImageSpec, TextSpec
from ..errors import SourceError
from ..io.foreign_code import tokenizer_of
from ._image import MAX_SIDE_PIXELS
from ._weights import Weights, read

MAX_TOKENS = 1_000_000  # tokens of a row; a tokenizer with a larger limit has none

TOKENIZER_FILES = (
    "config.json",  # names the tokenizer's class where tokenizer_config.json does not
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
    "spm.model",
    "source.spm",
    "target.spm",
    "tokenizer.tiktoken",
    "qwen.tiktoken",
    "vocab.bpe",
    "dict.txt",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    "emoji.json",
)

PIECES = ("spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm")

PACKAGES = {
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "google.protobuf": "protobuf",
    "sacremoses": "sacremoses",
    "jieba": "jieba",
    "rjieba": "rjieba",
    "fugashi": "fugashi",
    "ipadic": "ipadic",
    "unidic_lite": "unidic_lite",
    "unidic": "unidic",
    "sudachipy": "sudachipy",
    "rhoknp": "rhoknp",
    "ftfy": "ftfy",
    "spacy": "spacy",
    "emoji": "emoji",
    "pythainlp": "pythainlp",
    "phonemizer": "phonemizer",
    "uroman": "uroman",
}  # module → what pip calls it

RESAMPLE: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}  # Pillow's numbers


def read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """Return the object (or list) in a file, or an empty one where the file does not exist.

    Raises SourceError for a damaged file.
    """
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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and progress bars of transformers inside the block.

    regraft raises errors of its own where they matter.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def find(name: str, offline: bool) -> Path:
    """Return a local folder, or the copy of the hub or its cache. Raises SourceError with the remedy."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.codes", "*.spm", "*.tiktoken", "README.md"]
    patterns += ["*.safetensors"]
    try:
        folder = Path(snapshot_download(name, local_files_only=offline, allow_patterns=patterns))
        if not list(folder.glob("*.safetensors")):
            patterns.append("pytorch_model*.bin")
            folder = Path(snapshot_download(name, local_files_only=offline, allow_patterns=patterns))
    except Exception as error:  # the hub raises many kinds of error for network faults
        raise SourceError(
            f"transformers:{name}: no such folder, not in the cache, and fetching failed; remedy: give "
            "a folder that holds the model"
        ) from error
    return folder


def weights(folder: Path) -> Weights:
    """Return the folder's tensors, from safetensors first, in one file or in shards."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        if (folder / file).is_file():
            return read(folder / file)
        index = read_json(folder / f"{file}.index.json")
        if index:  # keep the names of shards only, so that nothing outside this folder is read
            shards = sorted({Path(s).name for s in index["weight_map"].values()})
            parts = [read(folder / shard) for shard in shards]
            digest = hashlib.sha256("".join(p.digest for p in parts).encode()).hexdigest()
            return Weights({n: t for p in parts for n, t in p.tensors.items()}, digest)
    raise SourceError(f"{folder}: no model.safetensors or pytorch_model.bin")


def text_spec(folder: Path, net: Any, max_length: int | None) -> tuple[TextSpec, tuple[str, ...], dict[str, Any]]:
    """Return tokenizer and length, notes, and how the tokenizer pads.

    Raises SourceError for no tokenizer, or one with too many tokens.
    """
    with quiet():
        tokenizer = tokenizer_of(str(folder), describe_tokenizer_failure)
    rows = tokens_of(net)
    if rows is not None and len(tokenizer) > rows:
        raise SourceError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows}")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise SourceError(
            f"{folder}: its tokenizer has no token to pad with; name a pad_token in tokenizer_config.json"
        )
    limits = [tokenizer.model_max_length]
    limits += [v for v in [read_json(folder / "sentence_bert_config.json").get("max_seq_length")] if v]
    limits += [v for v in [positions(net)] if v]
    limit = min(limits)
    limit = limit if limit < MAX_TOKENS else 512  # a tokenizer without a limit says 1e30
    pad = tokenizer.eos_token_id if tokenizer.pad_token is None else tokenizer.pad_token_id
    padding = {"padding_side": str(tokenizer.padding_side), "pad": pad}
    if max_length is None or max_length <= limit:
        return TextSpec(str(folder), max_length or limit), (), padding
    note = f"max_length {max_length} is above the limit {limit}"
    return TextSpec(str(folder), limit), (note,), padding


def describe_tokenizer_failure(folder: Path, error: Exception) -> str:
    """Return the reason why a tokenizer does not load.

    The file decides which package reads it. The library tries one package after another and names the last one, which
    may not help.
    """
    needed = package_of(folder)
    if needed is not None:
        package, file = PACKAGES[needed[0]], needed[1]
        lacks = f"{file} is read by the package {package}: pip install {package}"
        return lacks if is_absent(needed[0]) else str(error)
    messages = " ".join(str(e) for e in causes_of(error))
    mentioned = [m for m in PACKAGES if re.search(rf"\b{m.rpartition('.')[2]}\b", messages, re.IGNORECASE)]
    module = next((m for m in mentioned if is_absent(m)), None)
    if module is None:
        return str(error)
    return f"it needs the package {PACKAGES[module]}: pip install {PACKAGES[module]}"


def package_of(folder: Path) -> tuple[str, str] | None:
    """Return (module, file) of a vocabulary that needs a package. None with tokenizer.json, which needs none."""
    if (folder / "tokenizer.json").is_file():
        return None
    for path in sorted(folder.glob("*.tiktoken")):
        return "tiktoken", path.name
    for name in PIECES:
        if (folder / name).is_file():
            return ("tiktoken" if lines_of_base64(folder / name) else "sentencepiece"), name
    return None


def lines_of_base64(path: Path) -> bool:
    """Return whether a file is tiktoken's: lines of a token in base64 and its number."""
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(300)) is not None


def is_absent(module: str) -> bool:
    """Return whether a module is not installed."""
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # of a package inside one that is absent
        return True


def causes_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and the errors that caused it."""
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors


def tokens_of(net: Any) -> int | None:
    """Return the number of rows in the token table, or None for a model that hashes characters."""
    try:
        return int(net.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):
        return None


def positions(net: Any) -> int | None:
    """Return the longest row, in tokens, that the model has positions for. None means no limit."""
    limit = getattr(net.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    tables = (m for n, m in net.named_modules() if n.endswith("position_embeddings"))
    pad = getattr(next(tables, None), "padding_idx", None)  # RoBERTa counts from pad + 1
    return limit if pad is None else limit - pad - 1


def picture_values(folder: Path) -> dict[str, Any]:
    """Return how pictures are prepared, from preprocessor_config.json or the processor's own part."""
    own: dict[str, Any] = read_json(folder / "preprocessor_config.json")
    part = own or read_json(folder / "processor_config.json").get("image_processor")
    return part if isinstance(part, dict) else {}


def describe_other_kind(folder: Path) -> str:
    """Return what a folder without config.json is instead, for a message."""
    adapter = read_json(folder / "adapter_config.json")
    if adapter:
        base = str(adapter.get("base_model_name_or_path"))[:80]
        return (
            f"; it holds an adapter of peft for {base}: merge it into that model (merge_and_unload) and save the whole"
        )
    return "; it is not a transformers model"


def vision(config: Any) -> Any:
    """Return the part of a configuration that describes pictures."""
    return getattr(config, "vision_config", None) or config


def channels(config: Any) -> int:
    """Return the number of picture channels, 3 where the configuration has none."""
    count = getattr(vision(config), "num_channels", 3)
    return count if isinstance(count, int) else 3


def image_spec(folder: Path, config: Any) -> ImageSpec:
    """Return the specification of preprocessor_config.json. Raises SourceError where regraft cannot follow it."""
    p: Any = picture_values(folder)
    if not p:
        raise SourceError(f"{folder}: no preprocessor_config.json, so mean, std and size are unknown")
    if p.get("do_normalize", True) and "image_mean" not in p:
        raise SourceError(f"{folder}: preprocessor_config.json has no image_mean")
    factor = p.get("rescale_factor", 1 / 255)
    if not p.get("do_rescale", True) or abs(factor - 1 / 255) > 1e-6:
        raise SourceError(f"{folder}: preprocessor_config.json rescales pictures by another factor than 1/255")
    count = channels(config)
    if p.get("do_normalize", True):
        for key in ("image_mean", "image_std"):
            numbers = p.get(key)
            ok = isinstance(numbers, list) and all(isinstance(v, int | float) for v in numbers)
            if not ok or len(numbers) != count or (key == "image_std" and min(numbers) <= 0):
                raise SourceError(
                    f"{folder}: preprocessor_config.json has {key} {numbers}, and the model takes "
                    f"{count} channels: it needs one number a channel"
                )
    side = getattr(vision(config), "image_size", None)
    side = side if isinstance(side, int) else 224
    resize, shorter = sizes(p.get("size", side))
    crop = sizes(p["crop_size"])[0] if p.get("do_center_crop") and "crop_size" in p else None
    if shorter and "crop_pct" in p and resize[0] < 384:  # ConvNeXt: size is after the crop
        crop, resize = resize, (int(resize[0] / p["crop_pct"]),) * 2
    for height, width in (resize, crop or resize):
        if not (0 < height <= MAX_SIDE_PIXELS and 0 < width <= MAX_SIDE_PIXELS):
            raise SourceError(
                f"{folder}: preprocessor_config.json asks for pictures of {height} × {width} pixels; "
                f"the limit is {MAX_SIDE_PIXELS} a side"
            )
    normal = p.get("do_normalize", True)
    return ImageSpec(
        size=crop or resize,
        resize=resize[0] if shorter and (crop or resize[0] < 384) else resize,
        interpolation=RESAMPLE.get(p.get("resample", 2), "bilinear"),
        mean=tuple(p["image_mean"]) if normal else (0.0,) * count,
        std=tuple(p["image_std"]) if normal else (1.0,) * count,
    )


def sizes(value: Any) -> tuple[tuple[int, int], bool]:
    """Return ((height, width), whether it is the shorter side) from any form that the library uses."""
    if isinstance(value, int):
        return (value, value), False
    if isinstance(value, dict) and "shortest_edge" in value:
        return (value["shortest_edge"],) * 2, True
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        return (value["height"], value["width"]), False
    raise SourceError(f"picture size {value} is not supported")


def licence(folder: Path) -> str:
    """Return the licence of the folder's README.md, or "unknown"."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    match = re.search(r"\A---\n.*?^license:\s*(\S+)", text, re.MULTILINE | re.DOTALL)
    return match.group(1) if match else "unknown"


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        if (source / file).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / file, target / file)
