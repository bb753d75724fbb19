"""Records of a source model, its blocks and the target model; no I/O and no torch at import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import plugins
from ..compute.arrays import Kind
from ..data.types import ImageSpec, Preprocess, TextSpec
from ..errors import PlanError
from ..tasks import DEFAULT_TASK, kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..compute.arrays import Inputs


# ---------------------------------------------------------------- source and target


@dataclass(frozen=True)
class Block:
    """An ordered, named part of a model; blocks partition its parameters, buffers and modules.

    ``run(backbone, x)`` computes this block's output from the output of the one before it (from the
    network's inputs for the first); it takes the backbone as an argument, so it stays true for a
    copy. ``None``: no cut at this boundary.
    """

    name: str
    tensors: tuple[str, ...]  # names of parameters and buffers, as in named_parameters()/buffers()
    modules: tuple[str, ...]  # names as in named_modules(); decides train() or eval()
    run: Callable[[nn.Module, Any], Any] | None = None


def run_blocks(blocks: Sequence[Block], backbone: nn.Module, x: Any) -> Any:
    """Return the output of the last of these blocks from the output of the block before the first."""
    for block in blocks:
        assert block.run is not None
        x = block.run(backbone, x)
    return x


def match_blocks(pattern: str, blocks: Collection[str]) -> list[str]:
    """Return the blocks whose names match a pattern, as in fnmatch.

    Raises PlanError, listing the blocks, if it matches none.
    """
    matched = [b for b in blocks if fnmatchcase(b, pattern)]
    if not matched:
        raise PlanError(f'pattern "{pattern}" matches no block; there are: {", ".join(blocks)}')
    return matched


@dataclass(frozen=True)
class LoadedTensor:
    """One line of the loading report."""

    name: str
    state: Literal["kept", "fresh", "resized", "unused"]
    shape: tuple[int, ...]
    note: str = ""


@dataclass
class Source:
    """A pre-trained model seen as head(backbone(inputs)).

    ``recipe`` is plain JSON from which the source file that made it builds the same architecture
    again without weights. ``nothing_kept`` marks a source without transfer (``random:``).
    """

    name: str  # the reference, as the plan writes it
    backbone: nn.Module  # inputs [B, …] → features [B, D]
    head: nn.Module | None  # features [B, D] → logits [B, C of the source]
    blocks: tuple[Block, ...]  # input → output, of the backbone
    preprocess: Preprocess
    features: int  # D, measured by a forward pass
    labels: tuple[str, ...] | None = None  # the source's class names
    words: tuple[str, ...] | None = None  # the same in words where labels are ids: "ant, emmet"
    task: str = DEFAULT_TASK  # what its head was trained for: a file of tasks/
    digest: str = ""  # sha256 of the weights file; "" where nothing was loaded
    licence: str = "unknown"
    recipe: dict[str, Any] = field(default_factory=dict)
    report: tuple[LoadedTensor, ...] = ()
    notes: tuple[str, ...] = ()
    nothing_kept: bool = False
    imagenet_accuracy: float | None = None  # top-1 share on ImageNet's val by its publisher; None: unknown
    example: Inputs | None = None  # a small batch that its forward pass takes

    @property
    def kind(self) -> Kind:
        """Return the kind of the inputs that the network takes."""
        if isinstance(self.preprocess, ImageSpec):
            return "image"
        return "text" if isinstance(self.preprocess, TextSpec) else self.preprocess.kind

    @property
    def has_classes(self) -> bool:
        """Return whether the head was trained to give each row one class."""
        return kind_of(self.task).targets == "class"

    @staticmethod
    def from_module(
        net: nn.Module,
        *,
        head: str,
        preprocess: Preprocess | Callable[[tuple[str, ...]], Tensor],
        example: Inputs,
        blocks: Sequence[tuple[str, Sequence[str]]] | None = None,
        name: str = "module",
    ) -> Source:
        """Make a source of any module; see :func:`regraft.sources.module.from_module`."""
        make = plugins.module("sources", "module").from_module
        source: Source = make(net, head=head, preprocess=preprocess, example=example, blocks=blocks, name=name)
        return source


@dataclass(frozen=True)
class SourceOptions:
    """The plan's ``[source]`` without the reference."""

    weights: Path | None = None  # a weights file instead of the library's own
    weights_key: str | None = None  # the key of the model's tensors in a checkpoint of several, as "teacher"
    in_channels: int | None = None  # of images; None: the source's
    image_size: int | None = None  # side in pixels of the network's input; None: the source's
    pooling: Literal["auto", "mean", "cls", "max", "last"] = "auto"  # of text encoders without a head
    allow_fresh: tuple[str, ...] = ()  # patterns of backbone tensors that may be fresh
    max_length: int | None = None  # tokens of a text, at most the source's limit; None: that limit
    offline: bool = False


@dataclass
class Target:
    """A model to be fitted, with the source that it came from."""

    model: nn.Module  # has .backbone and .head; names are "backbone.…" and "head.…"
    blocks: tuple[Block, ...]  # of the model, input → output; the last is "head"
    anchor: dict[str, Tensor]  # θs: detached clones of the kept parameters, by name in the model
    report: tuple[LoadedTensor, ...]
    source: Source
    nothing_kept: bool = False

    @property
    def kept(self) -> frozenset[str]:
        """Return the names of the parameters that have an anchor."""
        return frozenset(self.anchor)

    def factors(self, by_block: Mapping[str, float]) -> dict[str, float]:
        """Return every tensor's factor by patterns of blocks, as { "blocks.[01]" = 0.1 }.

        The factor is 1 if no pattern matches, and the last pattern's if several match. Raises PlanError if a
        pattern matches no block.
        """
        names = [b.name for b in self.blocks]
        of_block = dict.fromkeys(names, 1.0)
        for pattern, value in by_block.items():
            of_block |= dict.fromkeys(match_blocks(pattern, names), value)
        return {tensor: of_block[b.name] for b in self.blocks for tensor in b.tensors}
