"""Parts of both exports to transformers: preprocessor files, and the lines that use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import Package, _shared


def save_model(package: Package, model: Any, folder: Path) -> None:
    """Save weights and configuration, with the run's name in place of a path, without a progress bar."""
    from transformers.utils import logging

    model.config._name_or_path = package.name
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        logging.enable_progress_bar()


def save_preprocessing(package: Package, folder: Path) -> Sequence[str]:
    """Save the tokenizer's files, or preprocessor_config.json; return notes for the user."""
    from PIL import Image

    if not _shared.is_image(package):
        _shared.save_tokenizer(package, folder)
        return ()
    s = _shared.image_spec(package)
    crop = crops(package)
    values: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor" if crop else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": s.resize}
        if isinstance(s.resize, int)
        else {"height": s.resize[0], "width": s.resize[1]},
        "resample": int(Image.Resampling[s.interpolation.upper()]),
        "do_center_crop": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(s.mean),
        "image_std": list(s.std),
    }
    if crop:
        values["crop_size"] = {"height": s.size[0], "width": s.size[1]}
    text = json.dumps(values, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    if not crop:
        return ()
    return (
        "transformers' own centre crop rounds an odd border the other way than torchvision's, with "
        "which the model was fitted, so the snippet crops by torchvision",
    )


def crops(package: Package) -> bool:
    s = _shared.image_spec(package)
    return s.resize != s.size


def pictures(package: Package, auto: str) -> str:
    """Return lines that make ``model`` and ``prepared(batch)``.

    The processor resizes by Pillow, as the run did, because its torchvision variant rounds otherwise.
    """
    s = _shared.image_spec(package)
    crop, more, line, how = crops(package), "", "", ""
    if crop:
        more = "from torchvision.transforms import v2\n"
        resize = s.resize if isinstance(s.resize, int) else list(s.resize)
        line = (
            f"crop = v2.Compose([v2.Resize({resize!r}, v2.InterpolationMode({s.interpolation!r})), "
            f"v2.CenterCrop({list(s.size)!r})])\n"
        )
        how = ", do_resize=False, do_center_crop=False"
    one = "crop(read(path))" if crop else "read(path)"
    return f"""import numpy as np
from PIL import Image, ImageOps
{more}from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained(".", backend="pil", trust_remote_code=False)  # this folder
model = {auto}.from_pretrained(".", trust_remote_code=False).eval()
{line}{_shared.reading(package)}
def prepared(batch):
    return processor([{one} for path in batch], return_tensors="pt"{how})
"""
