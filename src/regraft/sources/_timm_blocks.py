"""Blocks of a timm model, and the forward pass of the common families as a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _blocks

if TYPE_CHECKING:
    from torch import Tensor


def group(model: Any, x: Tensor) -> list[tuple[str, list[str]]]:
    """Return named groups of the backbone's tensors, input → output, as timm groups them, else by children.

    Not every architecture has a matcher, and not every matcher matches its names.
    """
    groups = by_matcher(model)
    names = sorted(_blocks.tensor_names(model))
    if len(groups) < 2 or sorted(t for _, g in groups for t in g) != names:
        return _blocks.by_children(model, x)
    return groups


def by_matcher(model: Any) -> list[tuple[str, list[str]]]:
    """Return timm's own coarse grouping with names, or an empty list where the architecture has none."""
    from timm.models._manipulate import group_with_matcher

    names = _blocks.tensor_names(model)
    # Parameters at the root (class token, positions, registers) enter with the patches.
    root = [n for n in names if "." not in n]
    try:
        matcher = model.group_matcher(coarse=True)
        levels = group_with_matcher([(n, n) for n in names if "." in n], matcher)
    except (AttributeError, AssertionError, NotImplementedError, TypeError, ValueError, IndexError):
        return []
    groups = [list(levels[level]) for level in sorted(levels)]
    if not groups:
        return []
    groups[0] = root + groups[0]
    tops = [[t for t in g if t.split(".")[0] == g[0].split(".")[0]] for g in groups]
    full = [_blocks.common_path(t) for t in tops]
    full[0] = _blocks.common_path(groups[0]) or "stem"
    named = [".".join(f.split(".")[: depth(f, full)]) for f in full]
    titles = named if len(set(named)) == len(named) else full
    if len(set(titles)) < len(titles):  # two groups inside one module: number them
        titles = [f"{t}-{i}" for i, t in enumerate(titles)]
    return list(zip(titles, groups, strict=True))


def depth(path: str, paths: list[str]) -> int:
    """Return the smallest depth among paths of the same top name, so that siblings have similar names."""
    top = path.split(".")[0]
    return min(len(p.split(".")) for p in paths if p.split(".")[0] == top)


def forward_steps(model: Any) -> list[str]:
    """Return the forward pass of common families as a chain of modules; empty for other families."""
    family = type(model).__name__
    if family == "EfficientNet":
        middle = [f"blocks.{i}" for i in range(len(model.blocks))]
        return ["conv_stem", "bn1", *middle, "conv_head", "bn2", "forward_head()"]
    if family == "MobileNetV3":
        middle = [f"blocks.{i}" for i in range(len(model.blocks))]
        last = ["global_pool", "conv_head", "norm_head", "act2", "flatten"]
        return ["conv_stem", "bn1", *middle, *last]
    if family == "ResNet":
        stem = ["conv1", "bn1", "act1", "maxpool"]
        return [*stem, "layer1", "layer2", "layer3", "layer4", "global_pool"]
    if family == "ConvNeXt":
        middle = [f"stages.{i}" for i in range(len(model.stages))]
        return ["stem", *middle, "norm_pre", "head"]
    if family == "VisionTransformer":
        middle = [f"blocks.{i}" for i in range(len(model.blocks))]
        stem = ["patch_embed", "_pos_embed()", "patch_drop", "norm_pre"]
        return [*stem, *middle, "norm", "forward_head()"]
    return []
