"""Weights files of other kinds, recognised by content, with a remedy for each."""

from __future__ import annotations

import zipfile
from pathlib import Path

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
