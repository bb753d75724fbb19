"""Parts of several exports: the tokenizer's files, and lines of Python for the snippets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.types import ImageSpec, TextSpec
from . import Package

if TYPE_CHECKING:
    from torch import Tensor, nn


MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def is_image(package: Package) -> bool:
    return isinstance(package.source.preprocess, ImageSpec)


def image_spec(package: Package) -> ImageSpec:
    spec = package.source.preprocess
    assert isinstance(spec, ImageSpec)
    return spec


def save_tokenizer(package: Package, folder: Path) -> None:
    """Save the tokenizer as the run uses it: with a padding token, and the run's length as its limit."""
    from ..io.foreign_code import tokenizer_of

    spec = package.source.preprocess
    assert isinstance(spec, TextSpec)
    tokenizer = tokenizer_of(spec.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = spec.max_length
    tokenizer.name_or_path = package.name
    tokenizer.save_pretrained(folder)


def named(package: Package) -> nn.Module:
    """Return the model with tokens as arguments by name; a model of pictures unchanged."""
    from torch import nn

    if is_image(package):
        return package.model

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = package.model

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
        ) -> Any:
            given = {"input_ids": input_ids, "attention_mask": attention_mask}
            given["token_type_ids"] = token_type_ids
            return self.model({k: v for k, v in given.items() if v is not None})

    return Named().eval()


def open_batch(package: Package) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Return (arguments, arguments by name, their dynamic dimensions) of the model as ``named``.

    Dynamic are the batch and, for texts, the length in tokens.
    """
    from torch.export import Dim

    if is_image(package):
        return (package.inputs,), {}, {"inputs": {0: Dim.DYNAMIC}}
    assert isinstance(package.inputs, dict)
    open_ = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return (), dict(package.inputs), dict.fromkeys(package.inputs, open_)


# ---------------------------------------------------------------- snippets


def reading(package: Package) -> str:
    """Return lines that define ``read(path)``: the picture as the run read it.

    It is upright. Greyscale of more than 8 bits is scaled by its range, because Pillow would clip it.
    Transparency is laid on white.
    """
    mode = MODES[image_spec(package).channels]
    on_white = """    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
"""
    return f"""
def scaled(values):
    low, high = float(values.min()), float(values.max())
    limits = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    limit = next((x for x in limits if low >= 0 and high <= x), None)
    low, limit = (0.0, limit) if limit is not None else (low, high - low or 1.0)
    return ((values.astype("float64") - low) * (255 / limit)).round().astype("uint8")

def read(path):
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode[0] in "IF":
        picture = Image.fromarray(scaled(np.asarray(picture)))
{"" if mode == "RGBA" else on_white}    return picture.convert("{mode}")
"""


def tokens(package: Package, tensors: str) -> str:
    """Return the call that makes tokens of ``batch``, as ``tensors``: "pt" or "np"."""
    spec = package.source.preprocess
    assert isinstance(spec, TextSpec)
    texts = "[a for a, b in batch], [b for a, b in batch]" if package.pairs else "list(batch)"
    return f'tokenizer({texts}, truncation=True, padding=True, return_tensors="{tensors}")'


def activated(package: Package, outputs: str) -> str:
    """Return an expression that makes scores of torch outputs."""
    call = {"softmax": ".softmax(-1)", "sigmoid": ".sigmoid()", "exp": ".exp()", "none": ""}
    return f"{outputs}.double(){call[package.task.activation]}"
