"""Modules of the caller: ``Source.from_module(net, head="fc", …)``. Only from Python."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.types import CallableSpec, ImageSpec, Preprocess, TextSpec
from ..errors import SourceError, did_you_mean, shorten
from ..model.types import LoadedTensor, Source, SourceOptions
from . import _blocks

if TYPE_CHECKING:
    from ..compute.arrays import Inputs


def load(name: str, options: SourceOptions) -> Source:
    """Raise SourceError: a plan cannot name a module."""
    raise SourceError(f'"module:{name}" cannot be named in a plan; pass it in Python with Source.from_module')


def build(recipe: dict[str, Any], folder: Path) -> Source:
    """Raise SourceError: a run does not hold the code of a module."""
    raise SourceError(
        f"{folder} was made from a module of one's own, whose code is not in a run; pass the "
        "module in Python with Source.from_module"
    )


def from_module(
    net: nn.Module,
    *,
    head: str,
    preprocess: Preprocess | Callable[[tuple[str, ...]], Tensor],
    example: Inputs,
    blocks: Sequence[tuple[str, Sequence[str]]] | None = None,
    name: str = "module",
) -> Source:
    """Return a source from a copy of ``net``, which stays untouched.

    ``head`` is the dotted name of the submodule that maps features [B, D] to outputs [B, C]. ``example`` is a
    batch for one forward pass. ``blocks`` are (name, dotted prefixes of tensors), input → output. Without them
    each child of the backbone with tensors is a block.

    Raises SourceError for a head that does not exist or does not come last, and for blocks that
    do not partition the backbone's tensors.
    """
    try:
        copied = copy.deepcopy(net).eval()
    except (RuntimeError, TypeError) as error:
        raise SourceError(
            f"{name} cannot be copied ({' '.join(str(error).split())[:200]}); a layer of "
            "torch.nn.utils.weight_norm can be one of torch.nn.utils.parametrizations.weight_norm"
        ) from error
    known = [n for n, _ in copied.named_modules() if n]
    if head not in known:
        raise SourceError(f'{name} has no submodule "{head}"; {did_you_mean(head, known)}')
    head_module = copied.get_submodule(head)
    with torch.no_grad():
        expected = copied(example)  # [B, C]
    copied.set_submodule(head, nn.Identity())
    groups = group_by_prefix(copied, blocks, name) if blocks is not None else _blocks.by_children(copied)
    if not groups:
        raise SourceError(f'{name} has no tensors outside "{head}"')
    cut = _blocks.partition(copied, groups, [None] * len(groups))
    features, cut = _blocks.prove(copied, head_module, cut, example, expected, f'{name}, head "{head}"')
    known_spec = isinstance(preprocess, ImageSpec | TextSpec | CallableSpec)
    shapes = {n: tuple(t.shape) for n, t in net.state_dict().items()}
    return Source(
        name=name,
        backbone=copied,
        head=head_module,
        blocks=cut,
        preprocess=preprocess if known_spec else CallableSpec(preprocess),  # type: ignore[arg-type]
        features=features,
        example=example,
        recipe={"source": "module"},
        report=tuple(LoadedTensor(n, "kept", shape) for n, shape in shapes.items()),
    )


def group_by_prefix(
    backbone: nn.Module, blocks: Sequence[tuple[str, Sequence[str]]], name: str
) -> list[tuple[str, list[str]]]:
    """Return the tensors under each block's prefixes. Raises SourceError where they are no partition."""
    names = _blocks.tensor_names(backbone)
    groups = [
        (title, [n for n in names if any(n == p or n.startswith(f"{p}.") for p in prefixes)])
        for title, prefixes in blocks
    ]
    counts = Counter(n for _, inside in groups for n in inside)
    faults = {
        "in no block": [n for n in names if not counts[n]],
        "in several blocks": [n for n in names if counts[n] > 1],
        "blocks without tensors": [title for title, inside in groups if not inside],
    }
    problems = [f"{words}: {shorten(at_fault)}" for words, at_fault in faults.items() if at_fault]
    if problems:
        raise SourceError(f"{name}: blocks do not partition the backbone; {'; '.join(problems)}")
    return groups
