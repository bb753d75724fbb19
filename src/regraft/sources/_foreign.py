"""Weights files of other kinds, recognised by content, and classes in a torch file, with a remedy for each.

Trainers save their options beside the weights: an argparse.Namespace, a path, a numpy number. Only the names of such
harmless classes are allowed. A placeholder that keeps nothing replaces each of them, so none of their code runs, not
even numpy's.
"""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint

from ..errors import shorten

STARTS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file of Keras or TensorFlow",
    b"GGUF": "a GGUF file of llama.cpp",
    b"ggml": "a GGML file of llama.cpp",
    b"\x93NUMPY": "an array of numpy",
    b"TFL3": "a TensorFlow Lite model",
}

PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}

TEXTS = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights: fetch them with git lfs pull",
    b"<": "a web page or other markup, not weights: fetch the file again",
    b"{": "JSON, not weights: of an index of shards name a shard's folder as transformers:FOLDER, or save "
    "the shards as one file with safetensors.torch.save_file",
}

SUFFIXES = {
    ".index": "a TensorFlow checkpoint",
    ".meta": "a TensorFlow checkpoint",
    ".pb": "a TensorFlow graph",
    ".onnx": "an ONNX graph",
    ".msgpack": "a Flax checkpoint",
    ".h5": "an HDF5 file of Keras or TensorFlow",
    ".keras": "a Keras model",
    ".mlmodel": "a Core ML model",
    ".engine": "a TensorRT engine",
}

CONVERT = (
    "expected safetensors or a torch state_dict; remedy: load it with the library that wrote it, and save "
    "its weights under the architecture's names with safetensors.torch.save_file"
)

UNSCRIPT = (
    "refused, nothing executed; remedy: where you trust it, load it in a sandbox with {} and save its "
    "state_dict() with safetensors.torch.save_file"
)

DICTIONARIES = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "timm.utils.misc.AttributeDict",
)

NAMES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "torch.torch_version.TorchVersion",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "typing.Any",
)

NETWORKS = ("torch.nn.modules.", "timm.", "transformers.models.", "torchvision.models.")


def describe_problem(path: Path) -> str | None:
    """Return why a file holds no readable weights and the remedy, or None for a file that may hold some."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty; fetch it again"
    if start[8:9] == b"{" and not start.startswith(b"PK"):
        return None  # safetensors
    if start.startswith(b"PK\x03\x04"):
        return archive(path)
    for magic, what in STARTS.items():
        if start.startswith(magic):
            return f"{what}; {CONVERT}"
    for magic, what in PACKED.items():
        if start.startswith(magic):
            return f"packed with {what}: unpack it first"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    for magic, words in TEXTS.items():
        if start.lstrip().lower().startswith(magic):
            return words
    if start[:1] == b"\x80":
        return None  # a pickle, torch's old format
    if b"onnx" in start.lower() or (start[:1] == b"\x08" and start[2:3] in (b"\x12", b":")):
        return f"an ONNX graph; {CONVERT}"
    if ".data-0" in path.name:
        return f"a TensorFlow checkpoint; {CONVERT}"
    what = SUFFIXES.get(path.suffix.lower(), "")
    return f"{what}; {CONVERT}" if what else None


def archive(path: Path) -> str | None:
    """Return what a zip archive is, or None for a torch file."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # truncated: torch.load reports it
    inner = [n.split("/", 1)[-1] for n in names]
    if "constants.pkl" in inner or any(n.startswith("code/") for n in inner):
        return "TorchScript, a program with its weights: " + UNSCRIPT.format("torch.jit.load")
    if "data.pkl" in inner:
        return None
    if any("archive_format" in n or n.endswith("serialized_exported_program.json") for n in names):
        return "a program of torch.export: " + UNSCRIPT.format("torch.export.load")
    if any(n.endswith(".npy") for n in names):
        return f"an .npz archive of numpy arrays, as JAX's weights are kept; {CONVERT}"
    if "model.weights.h5" in names:
        return f"a Keras model; {CONVERT}"
    return "a zip archive without torch's weights: unpack it first"


class Record:
    """A placeholder for an object of an allowed class. It takes any arguments and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Record:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def allowed() -> list[Any]:
    """Return placeholders under the names of harmless classes, for torch's ``safe_globals``."""
    return [*((Record, n) for n in NAMES), *((OrderedDict, n) for n in DICTIONARIES)]


def describe_refusal(path: Path, error: Exception) -> str:
    """Return why a torch file is refused and the remedy, without torch's own advice."""
    names = foreign_names(path, error)
    whole = [n for n in names if n.startswith(NETWORKS)]
    what = (
        "it is damaged, or holds more than tensors"
        if not names
        else f"it holds a whole module ({shorten(whole, 3)})"
        if whole
        else f"beside tensors it holds objects of classes that may run code ({shorten(names, 3)})"
    )
    return (
        f"refused, nothing executed: {what}; remedy: where you trust it, load it in a sandbox and save its "
        "state_dict() with safetensors.torch.save_file"
    )


def foreign_names(path: Path, error: Exception) -> list[str]:
    """Return the classes and functions that a torch file names and that are not allowed."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # an old or damaged file: torch's message has the first name only
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
