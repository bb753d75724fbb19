"""Plain transformers' `AutoModel`, the pooling in the snippet's lines, and `head.safetensors`.

It is for encoders whose pooling no class of transformers has, like the mean of tokens under the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import Package, _shared, _transformers

needs: tuple[str, ...] = ()

library = "transformers"

with_regraft = False

folds = True

POOLINGS = ("head", "mean", "cls", "last", "own")

OWN = ("text_embeds", "image_embeds", "pooler_output")  # a model's own vector, by preference


def refusal(package: Package) -> str | None:
    import transformers
    from torch import nn

    if package.source.recipe.get("source") != "transformers":
        return "its network is not one of transformers': try --to timm, or onnx, which takes any"
    if not isinstance(package.model.get_submodule("head"), nn.Linear):
        return "its head is not linear: try --to onnx, which takes any model"
    backbone: Any = package.source.backbone
    if mode(package) is None:  # a dense layer before the head, say
        return "its features are more than pooled tokens: try --to transformers, or onnx"
    if backbone.pooling not in POOLINGS or backbone.left or hasattr(backbone, "after"):
        return f"its pooling ({backbone.pooling}) takes more than a line: try --to onnx, or bundle"
    if backbone.length or not hasattr(transformers, model_class(package)):
        return "its encoder has no class that a line loads: try --to onnx, or bundle"
    return None


def model_class(package: Package) -> str:
    """Return the class of transformers that the snippet loads."""
    return package.source.recipe.get("class") or "AutoModel"


def pooling(package: Package) -> str:
    """Return the expression for features of ``hidden`` and, for texts, ``mask``."""
    pooled = mode(package)
    if pooled == "mean":
        if _shared.is_image(package):
            return "hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)"
        return "(hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)"
    if pooled == "last":
        return "hidden[torch.arange(len(hidden)), mask.squeeze(-1).sum(1) - 1]"
    return "hidden.flatten(1)" if pooled == "own" else "hidden[:, 0]"


def output(package: Package) -> str:
    """Return the name of the model's output that pooling takes."""
    import torch

    backbone: Any = package.source.backbone
    if backbone.pooling != "own":
        return "last_hidden_state"
    x = package.inputs
    with torch.inference_mode():
        out = base_of(package)(**x) if isinstance(x, dict) else base_of(package)(pixel_values=x)
    return next(n for n in OWN if getattr(out, n, None) is not None)


def base_of(package: Package) -> Any:
    net: Any = package.source.backbone.net
    return getattr(net, "base_model", net)


def mode(package: Package) -> str | None:
    """Return the pooling; for a model's own head, the token that it takes. None where it takes no token."""
    import torch

    backbone: Any = package.source.backbone
    if backbone.pooling != "head":
        return str(backbone.pooling)
    x = package.inputs
    with torch.inference_mode():
        out = base_of(package)(**x) if isinstance(x, dict) else base_of(package)(pixel_values=x)
        found, wanted = out.last_hidden_state, backbone(x)
    if found.ndim != 3:
        return None
    tokens = {"cls": found[:, 0]}
    if isinstance(x, dict):
        tokens["last"] = found[torch.arange(len(found)), x["attention_mask"].sum(1) - 1]
    same = (n for n, t in tokens.items() if t.shape == wanted.shape)
    return next((n for n in same if torch.allclose(tokens[n], wanted, rtol=1e-4, atol=1e-4)), None)


def write(package: Package, folder: Path) -> Sequence[str]:
    import copy

    from safetensors.torch import save_file

    _transformers.save_model(package, copy.deepcopy(base_of(package)), folder)
    head = package.model.get_submodule("head").state_dict()
    save_file({k: v.contiguous().clone() for k, v in head.items()}, folder / "head.safetensors")
    (folder / "labels.json").write_text(package.plain["labels.json"], encoding="utf-8")
    return _transformers.save_preprocessing(package, folder)


def snippet(package: Package) -> str:
    outputs = _shared.activated(package, 'torch.nn.functional.linear(features, head["weight"], head["bias"])')
    if _shared.is_image(package):
        return f"""import torch
from safetensors.torch import load_file
{_transformers.pictures(package, model_class(package))}head = load_file("head.safetensors")

@torch.inference_mode()
def scores(batch):
    hidden = model(**prepared(batch)).{output(package)}
    features = {pooling(package)}
    return {outputs}
"""
    extra = ", add_pooling_layer=False" if unpooled(package) else ""
    return f"""import safetensors.torch, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(".", trust_remote_code=False)  # this folder
model = transformers.{model_class(package)}.from_pretrained(".", trust_remote_code=False{extra}).eval()
head = safetensors.torch.load_file("head.safetensors")
@torch.inference_mode()
def scores(batch):
    tokens = {_shared.tokens(package, "pt")}
    hidden, mask = model(**tokens).{output(package)}, tokens["attention_mask"].unsqueeze(-1)
    features = {pooling(package)}
    return {outputs}
"""


def unpooled(package: Package) -> bool:
    """Return whether the class would add a pooler with random weights, and warn."""
    base = base_of(package)
    return hasattr(base, "pooler") and base.pooler is None
