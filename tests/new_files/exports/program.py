"""A program of `torch.export` alone, for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Package


needs: tuple[str, ...] = ()

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
    assert isinstance(spec.resize, tuple)
    return f"""import numpy as np, torch
from PIL import Image, ImageOps

model = torch.export.load("program.pt2").module()  # in this folder
mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ({list(spec.mean)!r}, {list(spec.std)!r}))
{_shared.reading(package)}
def pixels(path):
    picture = read(path).resize({spec.resize[::-1]!r}, Image.Resampling.{spec.interpolation.upper()})
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - mean) / std

@torch.inference_mode()
def scores(batch):
    outputs = model(torch.stack([pixels(path) for path in batch]))
    return {_shared.activated(package, "outputs")}
"""
