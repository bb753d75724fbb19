"""ONNX, for any runtime: dynamic in the batch and, for texts, in the length; ``--int8`` adds a smaller one.

The file's metadata hold preprocessing and class names. Above two gigabytes, protobuf's limit, the weights are
in a second file beside the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from . import Package, _shared

if TYPE_CHECKING:
    from torch import nn


needs = ("onnx", "onnxruntime", "onnxscript")

library = "onnx"

with_regraft = False

folds = True

FILE, SMALL = "model.onnx", "model.int8.onnx"

MAX_BYTES = 1_900_000_000  # of weights in the graph's own file


def refusal(package: Package) -> str | None:
    return None


def write(package: Package, folder: Path) -> Sequence[str]:
    import onnx
    import torch
    from torch.onnx import OnnxExporterError

    args, by_name, shapes = _shared.open_batch(package)
    names = list(by_name) or ["inputs"]
    out = "values" if package.task.activation == "none" else "logits"

    def exported() -> Any:
        return torch.onnx.export(
            _shared.named(package),
            args,
            kwargs=by_name,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=[out],
            verbose=False,
        )

    try:
        program = exported()
    except OnnxExporterError:
        with step_by_step(package.model) as changed:
            if not changed:
                raise
            program = exported()
    if program is None:
        raise ExportError("torch's exporter gave no ONNX model")
    told = {name: package.plain[f"{name}.json"] for name in ("preprocess", "labels")}
    program.model.metadata_props.update(told)
    size = sum(p.numel() * p.element_size() for p in package.model.state_dict().values())
    program.save(folder / FILE, external_data=size > MAX_BYTES)
    onnx.checker.check_model(str(folder / FILE))
    if not _shared.is_image(package):
        _shared.save_tokenizer(package, folder / "tokenizer")
    return ()


@contextmanager
def step_by_step(model: nn.Module) -> Iterator[int]:
    """Compute timm's attention in single steps inside; the value is the number of layers that do.

    torch's exporter loses the memory layout of fused attention with a bias, and fails on it.
    """
    layers: list[Any] = [m for m in model.modules() if getattr(m, "fused_attn", False) is True]
    for layer in layers:
        layer.fused_attn = False
    try:
        yield len(layers)
    finally:
        for layer in layers:
            layer.fused_attn = True


def int8(folder: Path) -> str:
    """Quantise weights to 8 bits, activations at run time; return the file's name.

    onnxruntime advises to optimise the graph first. The filter hides that, because torch's exporter has done it.
    """
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    def advice(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    logging.root.addFilter(advice)
    try:
        quantize_dynamic(folder / FILE, folder / SMALL, weight_type=QuantType.QUInt8)
    finally:
        logging.root.removeFilter(advice)
    return SMALL


def snippet(package: Package) -> str:
    head = f"""session = onnxruntime.InferenceSession("{FILE}")  # in this folder
"""
    tail = {
        "softmax": """    e = np.exp(outputs - outputs.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
""",
        "sigmoid": "    return 1 / (1 + np.exp(-outputs))\n",
        "exp": "    return np.exp(outputs)\n",
        "none": "    return outputs\n",
    }[package.task.activation]
    if not _shared.is_image(package):
        return f"""import numpy as np, onnxruntime
from transformers import AutoTokenizer

{head}tokenizer = AutoTokenizer.from_pretrained("tokenizer", trust_remote_code=False)

def scores(batch):
    tokens = {_shared.tokens(package, "np")}
    outputs = session.run(None, {{i.name: tokens[i.name] for i in session.get_inputs()}})[0].astype("float64")
{tail}"""
    return f"""import json, numpy as np, onnxruntime
from PIL import Image, ImageOps

{head}told = json.loads(session.get_modelmeta().custom_metadata_map["preprocess"])
mean, std = (np.float32(told[k]).reshape(-1, 1, 1) for k in ("mean", "std"))
{_shared.reading(package)}
def resized(picture):  # the shorter side, or both sides
    r, (w, h) = told["resize"], picture.size
    if isinstance(r, int):
        r = (int(r * h / w), r) if w <= h else (r, int(r * w / h))
    return picture.resize((r[1], r[0]), Image.Resampling[told["interpolation"].upper()])

def cropped(picture):  # the centre; black where the picture is smaller
    (h, w), (pw, ph) = told["size"], picture.size
    left, top = (round((a - b) / 2) if a >= b else -((b - a) // 2) for a, b in ((pw, w), (ph, h)))
    return picture.crop((left, top, left + w, top + h))

def scores(batch):
    pictures = [np.asarray(cropped(resized(read(path))), np.float32) for path in batch]
    x = np.stack([p.reshape(*p.shape[:2], -1).transpose(2, 0, 1) / 255 for p in pictures])
    outputs = session.run(None, {{"inputs": (x - mean) / std}})[0].astype("float64")
{tail}"""
