"""A program of `torch.export` alone, for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Package


needs: tuple[str, ...] = ()

library = "pytorch"

with_regraft = False

folds = True


def refusal(package: Package) -> str | None:
    """Return why the run cannot leave this way; None where it can."""
    from . import _shared

    return None if _shared.is_image(package) else "it takes pictures alone: try --to torch"


def write(package: Package, folder: Path) -> Sequence[str]:
    """Write the program; return notes for the user."""
    import torch

    from . import _shared

    args, by_name, shapes = _shared.open_batch(package)
    program = torch.export.export(package.model, args, by_name, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, folder / "program.pt2")
    return ()


def snippet(package: Package) -> str:
    """Return Python that defines ``scores(batch)``."""
    from . import _shared

    spec = _shared.image_spec(package)
    resize = spec.resize if isinstance(spec.resize, int) else list(spec.resize)
    return f"""import numpy as np, torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

model = torch.export.load("program.pt2").module()  # in this folder
pixels = v2.Compose([
    v2.Resize({resize!r}, v2.InterpolationMode({spec.interpolation!r})), v2.CenterCrop({list(spec.size)!r}),
    v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize({list(spec.mean)!r}, {list(spec.std)!r}),
])
{_shared.reading(package)}
@torch.inference_mode()
def scores(batch):
    outputs = model(torch.stack([pixels(read(path)) for path in batch]))
    return {_shared.activated(package, "outputs")}
"""
