"""A folder for plain timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

The configuration has class names and the run's preprocessing, so timm's own transform is the run's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.types import ImageSpec
from ..errors import ExportError
from . import Package, _shared

needs: tuple[str, ...] = ()

library = "timm"

with_regraft = False

folds = True


def refusal(package: Package) -> str | None:
    from torch import nn

    if package.source.recipe.get("source") != "timm":
        return "its network is not one of timm's: try --to transformers, or onnx, which takes any model"
    if not isinstance(package.model.get_submodule("head"), nn.Linear):
        return "its head is not timm's single linear layer: try --to onnx, which takes any model"
    return None


def write(package: Package, folder: Path) -> Sequence[str]:
    import copy

    from timm.models import save_for_hf
    from torch import nn

    model: Any = copy.deepcopy(package.source.backbone)
    model.reset_classifier(package.task.outputs)  # in its place, with the run's outputs
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        kind = type(classifier).__name__ if isinstance(classifier, nn.Module) else "several heads"
        raise ExportError(
            f"timm's head of this architecture is no single linear layer but {kind}: try --to onnx, which takes "
            "any model"
        )
    state = package.model.get_submodule("head").state_dict()
    shapes = {n: t.shape for n, t in classifier.state_dict().items()}  # of a 1×1 convolution too
    classifier.load_state_dict({n: t.reshape(shapes.get(n, t.shape)) for n, t in state.items()})
    save_for_hf(
        model,
        folder,
        model_config={"label_names": list(package.task.classes)},
        safe_serialization=True,
        data_config=data_config(_shared.image_spec(package)),
    )
    return ()


def data_config(spec: ImageSpec) -> dict[str, Any]:
    """Return the preprocessing in timm's terms: sides to floor(size ÷ crop_pct), the centre crop."""
    squash = not isinstance(spec.resize, int)
    wanted = spec.resize[0] if isinstance(spec.resize, tuple) else spec.resize
    crop = spec.size[0] / wanted
    if math.floor(spec.size[0] / crop) != wanted:  # floor rounded it down: aim between two sizes
        crop = spec.size[0] / (wanted + 0.5)
    return {
        "input_size": (spec.channels, *spec.size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": crop,
        "crop_mode": "squash" if squash else "center",
    }


def snippet(package: Package) -> str:
    return f"""import numpy as np, timm, torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{_shared.reading(package)}
@torch.inference_mode()
def scores(batch):
    outputs = model(torch.stack([transform(read(path)) for path in batch]))
    return {_shared.activated(package, "outputs")}
"""
