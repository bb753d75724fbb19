"""Plain transformers' `AutoModel`, the pooling in the snippet's lines, and `head.safetensors`.

For encoders whose pooling no class of transformers has: the mean of tokens under the mask, say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..types import Package

needs: tuple[str, ...] = ()
with_regraft = False
folds = True


def refusal(package: Package) -> str | None:
    from torch import nn

    if package.source.recipe.get("source") != "transformers":
        return "its network is not one of transformers': try --to timm, or onnx, which takes any"
    if not isinstance(package.model.get_submodule("head"), nn.Linear):
        return "its head is not linear: try --to onnx, which takes any model"
    backbone: Any = package.source.backbone
    if backbone.pooling == "head" and differs(package):  # a dense layer before the head, say
        return "its features are more than pooled tokens: try --to transformers, or onnx"
    return None


def pooling(package: Package) -> str:
    """The lines' expression for features, of ``hidden`` and, for texts, ``mask``."""
    backbone: Any = package.source.backbone
    if backbone.pooling == "mean":
        from . import _shared

        if _shared.is_image(package):
            return "hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)"
        return "(hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)"
    return "hidden[:, 0]"


def base_of(package: Package) -> Any:
    net: Any = package.source.backbone.net
    return getattr(net, "base_model", net)


def differs(package: Package) -> bool:
    """Whether the first token of the encoder is not what the run's head is given."""
    import torch

    x = package.inputs
    with torch.inference_mode():
        out = base_of(package)(**x) if isinstance(x, dict) else base_of(package)(pixel_values=x)
        found, wanted = out.last_hidden_state, package.source.backbone(x)
    return found.ndim != 3 or not torch.allclose(found[:, 0], wanted, rtol=1e-4, atol=1e-4)


def write(package: Package, folder: Path) -> Sequence[str]:
    import copy

    from safetensors.torch import save_file

    from . import _transformers

    _transformers.save_model(package, copy.deepcopy(base_of(package)), folder)
    head = package.model.get_submodule("head").state_dict()
    save_file({k: v.contiguous().clone() for k, v in head.items()}, folder / "head.safetensors")
    (folder / "labels.json").write_text(package.plain["labels.json"], encoding="utf-8")
    return _transformers.save_preprocessing(package, folder)


def snippet(package: Package) -> str:
    from . import _shared, _transformers

    outputs = _shared.activated(
        package, 'torch.nn.functional.linear(features, head["weight"], head["bias"])'
    )
    if _shared.is_image(package):
        return f"""import torch
from safetensors.torch import load_file
{_transformers.pictures(package, "AutoModel")}head = load_file("head.safetensors")

@torch.inference_mode()
def scores(batch):
    hidden = model(**prepared(batch)).last_hidden_state
    features = {pooling(package)}
    return {outputs}
"""
    extra = ", add_pooling_layer=False" if unpooled(package) else ""
    return f"""import safetensors.torch, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(".", trust_remote_code=False)  # this folder
model = transformers.AutoModel.from_pretrained(".", trust_remote_code=False{extra}).eval()
head = safetensors.torch.load_file("head.safetensors")
@torch.inference_mode()
def scores(batch):
    tokens = {_shared.tokens(package, "pt")}
    hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
    features = {pooling(package)}
    return {outputs}
"""


def unpooled(package: Package) -> bool:
    """Whether the class would else make a pooler of its own, with random weights and a warning."""
    base = base_of(package)
    return hasattr(base, "pooler") and base.pooler is None
