"""A graph by `torch.export`, for any program with torch: dynamic in the batch and, for texts, in the length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.types import ImageSpec
from . import Package, _shared

needs: tuple[str, ...] = ()

library = "pytorch"

with_regraft = False

folds = True

FILE = "model.pt2"


def refusal(package: Package) -> str | None:
    return None


def write(package: Package, folder: Path) -> Sequence[str]:
    import torch

    args, by_name, shapes = _shared.open_batch(package)
    program = torch.export.export(_shared.named(package), args, by_name, dynamic_shapes=shapes, strict=False)
    told = {name: package.plain[name] for name in ("preprocess.json", "labels.json")}
    torch.export.save(program, folder / FILE, extra_files=dict(told))
    for name, text in told.items():
        (folder / name).write_text(text, encoding="utf-8")
    if not _shared.is_image(package):
        _shared.save_tokenizer(package, folder / "tokenizer")
    return ()


def snippet(package: Package) -> str:
    if _shared.is_image(package):
        return f"""import numpy as np, torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

model = torch.export.load("{FILE}").module()  # in this folder
{transform(_shared.image_spec(package))}{_shared.reading(package)}
@torch.inference_mode()
def scores(batch):
    outputs = model(torch.stack([transform(read(path)) for path in batch]))
    return {_shared.activated(package, "outputs")}
"""
    return f"""import torch
from transformers import AutoTokenizer

model = torch.export.load("{FILE}").module()  # in this folder
tokenizer = AutoTokenizer.from_pretrained("tokenizer", trust_remote_code=False)

@torch.inference_mode()
def scores(batch):
    outputs = model(**{_shared.tokens(package, "pt")})
    return {_shared.activated(package, "outputs")}
"""


def transform(s: ImageSpec) -> str:
    """Return lines that define ``transform``: PIL → [C, H, W]."""
    resize = s.resize if isinstance(s.resize, int) else list(s.resize)
    return f"""transform = v2.Compose([
    v2.Resize({resize!r}, v2.InterpolationMode({s.interpolation!r})), v2.CenterCrop({list(s.size)!r}),
    v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize({list(s.mean)!r}, {list(s.std)!r}),
])
"""
