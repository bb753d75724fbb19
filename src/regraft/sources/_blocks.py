"""Blocks of a backbone: an ordered partition of its tensors and modules, and the proof of a split.

A module without tensors belongs to the block before it. The root, and a container that spans several blocks, belong to
the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SourceError
from ..model.types import Block

if TYPE_CHECKING:
    from ..compute.arrays import Inputs

Run = Callable[[nn.Module, Any], Any]

Steps = Sequence[str]  # dotted modules, or "method()", in the order of the forward pass


def tensor_names(module: nn.Module) -> list[str]:
    """Return the names of parameters and buffers, including non-persistent ones. A tied tensor occurs once."""
    return [*(n for n, _ in module.named_parameters()), *(n for n, _ in module.named_buffers())]


def partition(
    backbone: nn.Module, groups: Sequence[tuple[str, Sequence[str]]], runs: Sequence[Run | None]
) -> tuple[Block, ...]:
    """Return blocks from named groups of tensors, input → output. Modules follow their tensors."""
    owner = {t: i for i, (_, tensors) in enumerate(groups) for t in tensors}
    modules: list[list[str]] = [[] for _ in groups]
    current = 0
    for name, _ in backbone.named_modules():
        inside = {i for t, i in owner.items() if t.startswith(f"{name}.")} if name else {-1}
        if not name or len(inside) > 1:
            modules[-1].append(name)
            continue
        current = inside.pop() if inside else current
        modules[current].append(name)
    return tuple(Block(name, tuple(tensors), tuple(modules[i]), runs[i]) for i, (name, tensors) in enumerate(groups))


def by_children(backbone: nn.Module, inputs: Inputs | None = None) -> list[tuple[str, list[str]]]:
    """Return one group for each child with tensors. Tensors of the root go with the first.

    Each element of a child that is a list of stages or layers is a group of its own. ``inputs`` are
    for a forward pass that decides the order; without them it is the order of registration.
    """
    names = tensor_names(backbone)
    root = [n for n in names if "." not in n]
    units = [name for name, _ in backbone.named_children()]
    if inputs is not None:
        units = [u for name in units for u in stages(backbone, name)]
        called = call_order(backbone, inputs)
        first = {
            u: min((i for m, i in called.items() if f"{m}.".startswith(f"{u}.")), default=len(called)) for u in units
        }
        units.sort(key=lambda u: first[u])
    groups = [(u, [n for n in names if n.startswith(f"{u}.")]) for u in units]
    groups = [(u, inside) for u, inside in groups if inside]
    if root:
        title = groups[0] if groups else ("root", [])
        groups[:1] = [(title[0], root + title[1])]
    return groups


def stages(backbone: nn.Module, name: str) -> list[str]:
    """Return the elements of a child that is a list of modules and holds all of its tensors, else the child itself."""
    child = backbone.get_submodule(name)
    if not isinstance(child, nn.ModuleList | nn.Sequential) or len(child) < 2:
        return [name]
    return [f"{name}.{n}" for n, _ in child.named_children()]


def call_order(backbone: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Return the position of each module's first call in a forward pass."""
    called: dict[str, int] = {}
    names = [n for n, _ in backbone.named_modules() if n]
    watch_calls(backbone, names, inputs, lambda name, _: called.setdefault(name, len(called)))
    return called


def watch_calls(
    model: nn.Module, names: Sequence[str], inputs: Inputs, note: Callable[[str, tuple[Any, ...]], object]
) -> None:
    """Run a forward pass, and call ``note`` with the name and the arguments of each call of a named module."""

    def hook(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        note(name, args)

    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(partial(hook, name)))
        model(inputs)


def common_path(tensors: Sequence[str]) -> str:
    """Return the longest dotted path that all tensors share: "blocks.3", or ""."""
    paths = [t.split(".")[:-1] for t in tensors]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def apply(steps: tuple[str, ...], backbone: nn.Module, x: Any) -> Any:
    """Run the steps of one block."""
    for step in steps:
        method = step.endswith("()")
        x = (getattr(backbone, step[:-2]) if method else backbone.get_submodule(step))(x)
    return x


def runs_of(steps: Steps, groups: Sequence[tuple[str, Sequence[str]]]) -> list[Run | None]:
    """Return a callable for each block, from the steps of the forward pass.

    A step belongs to the block of its tensors. A step without tensors, or a method, belongs to the block of the
    step before it. The last step belongs to the last block. All callables are None where steps and blocks run
    in different orders.
    """
    none: list[Run | None] = [None] * len(groups)
    owner = {t: i for i, (_, tensors) in enumerate(groups) for t in tensors}
    of_block: list[list[str]] = [[] for _ in groups]
    current = 0
    for number, step in enumerate(steps):
        inside = {i for t, i in owner.items() if t.startswith(f"{step}.")}
        if number == len(steps) - 1:
            inside = {len(groups) - 1}
        if len(inside) > 1 or (inside and min(inside) < current):
            return none
        current = inside.pop() if inside else current
        of_block[current].append(step)
    return [partial(apply, tuple(s)) for s in of_block] if all(of_block) else none


class Uncached(dict[str, Any]):
    """A cache that never has an entry, so that its user computes each value again."""

    def __contains__(self, key: object) -> bool:
        return False

    def __bool__(self) -> bool:
        return False


def disable_caches(backbone: nn.Module) -> None:
    """Disable caches of values that are computed from weights.

    timm's LeViT and similar models keep attention biases from the first pass in eval mode until they train. Weights
    that are loaded or averaged in between would have no effect.
    """
    for module in backbone.modules():
        if isinstance(getattr(module, "attention_bias_cache", None), dict):
            module.attention_bias_cache = Uncached()  # type: ignore[assignment]


def prove(
    backbone: nn.Module,
    head: nn.Module | None,
    blocks: tuple[Block, ...],
    inputs: Inputs,
    expected: Tensor | None,
    where: str,
) -> tuple[int, tuple[Block, ...]]:
    """Return (D, blocks) of a split, after a forward pass in eval mode proved it.

    ``expected`` [B, C] is the original model's output. Where the runs of the blocks do not chain to the backbone's
    exact output, the blocks lose their runs: a wrong cut is worse than none.

    Raises SourceError where features are not [B, D], where two passes over one input differ, or where
    head(backbone(x)) is not the original output.
    """
    disable_caches(backbone)
    with torch.no_grad():
        try:
            features = backbone(inputs)
        except RuntimeError as error:
            raise SourceError(f"{where}: refused, its head does not come last ({error})") from error
        if not isinstance(features, torch.Tensor) or features.ndim != 2:
            raise SourceError(f"{where}: refused, its features are not one vector a row")
        repeated = backbone(inputs)
        if not torch.allclose(repeated, features, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise SourceError(
                f"{where}: refused, two passes over one input differ: it draws at random even in eval mode"
            )
        if head is not None and expected is not None:
            try:
                same = torch.allclose(head(features), expected, rtol=1e-4, atol=1e-5)
            except RuntimeError as error:
                raise SourceError(f"{where}: refused, its head does not fit ({error})") from error
            if not same:
                raise SourceError(f"{where}: refused, head(backbone(x)) is not the model's output")
        x: Any = inputs
        for block in blocks:
            if block.run is None:
                return features.shape[1], blocks
            x = block.run(backbone, x)
    if torch.allclose(x, features, rtol=1e-4, atol=1e-5):
        return features.shape[1], blocks
    return features.shape[1], tuple(Block(b.name, b.tensors, b.modules) for b in blocks)
