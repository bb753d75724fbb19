"""A folder for plain transformers: `AutoModelForSequenceClassification`, or `…ForImageClassification`.

The export needs the class's own pooling and head, which a forward pass proves. Other runs are refused;
transformers-features writes their pooling in ten lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import Package, _shared, _transformers

if TYPE_CHECKING:
    from torch import nn


needs: tuple[str, ...] = ()

library = "transformers"

with_regraft = False

folds = True

HEADS = ("classifier", "score", "logits_proj")

PROBLEMS = {"class": "single_label_classification", "labels": "multi_label_classification", "numbers": "regression"}


def auto_class(package: Package) -> str:
    kind = "Image" if _shared.is_image(package) else "Sequence"
    return f"AutoModelFor{kind}Classification"


def refusal(package: Package) -> str | None:
    if package.source.recipe.get("source") != "transformers":
        return "its network is not one of transformers': try --to timm, or onnx, which takes any"
    why = assembled(package)[1]
    return why and f"{why}: --to transformers-features writes AutoModel, the pooling and the head"


def assembled(package: Package) -> tuple[Any, str | None]:
    """Return (the class's own model with the run's weights, None), or (None, why there is none)."""
    import copy

    import torch
    import transformers
    from torch import nn

    net: Any = package.source.backbone.net
    config = copy.deepcopy(net.config)
    config.num_labels = package.task.outputs
    config.id2label = dict(enumerate(package.task.classes))
    config.label2id = {c: i for i, c in enumerate(package.task.classes)}
    config.problem_type = PROBLEMS[package.task.targets]
    if getattr(config, "pad_token_id", None) is None and "pad" in package.source.recipe:
        config.pad_token_id = package.source.recipe["pad"]  # else a decoder takes one row at a time
    auto = getattr(transformers, auto_class(package))
    try:
        model = auto.from_config(config, trust_remote_code=False).float().eval()
    except ValueError:
        return None, f"transformers has no {auto_class(package)} of {config.model_type}"
    own = type(model).__name__
    head: nn.Module = package.model.get_submodule("head")
    named = package.source.recipe.get("head_name")
    names = [named] if named else [n for n in HEADS if isinstance(getattr(model, n, None), nn.Linear)]
    name = names[0] if names else "classifier"
    last = dict(model.named_modules()).get(name)
    if not isinstance(last, nn.Linear) or not isinstance(head, nn.Linear):
        return None, f"the head of {own} is not a single linear layer, as the run's is"
    if last.weight.shape != head.weight.shape:
        return None, f"the head of {own} takes {last.in_features} features, not {head.in_features}"
    state = net.state_dict()
    if type(net) is not type(model):  # a plain encoder lies below the class's own
        state = {f"{model.base_model_prefix}.{n}": t for n, t in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = [n for n in missing if not n.startswith(f"{name}.")]
    if absent or unexpected:
        named = ", ".join([*absent, *unexpected][:2])
        return None, f"{own} pools otherwise than the run does (its tensors differ: {named})"
    if last.bias is None:
        return None, f"the head of {own} has no bias, as the run's has"
    last.load_state_dict(head.state_dict())
    x = package.inputs
    with torch.inference_mode():
        found = model(**x) if isinstance(x, dict) else model(pixel_values=x)
        same = torch.allclose(found.logits, package.model(x), rtol=1e-4, atol=1e-4)
    return (model, None) if same else (None, f"{own} pools otherwise than the run does")


def write(package: Package, folder: Path) -> Sequence[str]:
    model, _ = assembled(package)
    _transformers.save_model(package, model, folder)
    return _transformers.save_preprocessing(package, folder)


def snippet(package: Package) -> str:
    auto = auto_class(package)
    if _shared.is_image(package):
        return f"""import torch
{_transformers.pictures(package, auto)}
@torch.inference_mode()
def scores(batch):
    outputs = model(**prepared(batch)).logits
    return {_shared.activated(package, "outputs")}
"""
    return f"""import torch
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=False)  # this folder
model = {auto}.from_pretrained(".", trust_remote_code=False).eval()

@torch.inference_mode()
def scores(batch):
    outputs = model(**{_shared.tokens(package, "pt")}).logits
    return {_shared.activated(package, "outputs")}
"""
