"""LoRA: the source's weights stay as they are, a low-rank change is learnt beside them and merged.

    W' = W + s · B A,   A ∈ R^(r×in) random, B ∈ R^(out×r) zero at the start,   s = α / r

Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; rank-stabilised: s = α / √r, Kalajdzievski
2023, https://arxiv.org/abs/2312.03732; DoRA, direction and magnitude apart: Liu et al. 2024,
https://arxiv.org/abs/2402.09353. By peft. Linear layers and convolutions of one group have a change;
embeddings, norms and depthwise convolutions have none. What is saved has the source's own shape.

A layer that standardises or computes its weight, or whose weight another layer reads, is left out: a change
beside it would train one model and merge into another.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from ..compute.arrays import map_inputs
from ..errors import PlanError, shorten
from ..model.types import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..compute.arrays import Inputs


@dataclass(frozen=True)
class LoRA:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    rank: int = 8  # r
    alpha: float = 16.0  # α
    dropout: float = 0.0  # on the input of the change
    variant: Literal["plain", "rank_stabilised", "dora"] = "plain"
    layers: tuple[str, ...] = ("*",)  # patterns of layer names in the backbone

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError("rank takes 1 or more, alpha more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout takes 0 up to below 1, not {self.dropout}")

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]:
        return frozenset(blocks)

    @contextmanager
    def adapted(self, target: Target, seed: int) -> Iterator[Target]:
        """Yield the target with changes that train in place of its backbone; merge them at the end.

        Raises PlanError where no layer can have a change, or a layer's forward pass would leave it out.
        """
        import torch
        from peft import LoraModel

        backbone = target.model.get_submodule("backbone")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            names = self.exact(target, self.changed(backbone))
            torch.manual_seed(seed)
            tuner = LoraModel(backbone, self.config(names), "default")
        try:
            yield with_changes(target, names)
        finally:
            merged = tuner.merge_and_unload()
            assert merged is backbone

    def config(self, names: Sequence[str]) -> Any:
        """Return peft's configuration of a change of the named layers."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            use_rslora=self.variant == "rank_stabilised",
            use_dora=self.variant == "dora",
            target_modules="|".join(map(re.escape, names)),
        )

    def exact(self, target: Target, names: Sequence[str]) -> list[str]:
        """Return the layers whose merged change is the change that was trained, and note the others.

        Raises PlanError where a pattern names none of them.
        """
        backbone = target.model.get_submodule("backbone")
        given = inputs_of(backbone, names, target.source.example)
        left = [n for n in names if not self.merges(backbone.get_submodule(n), given.get(n))]
        kept = [n for n in names if n not in left]
        for pattern in self.layers:
            if not any(fnmatchcase(n, pattern) for n in kept):
                raise PlanError(
                    f'freezing.layers: "{pattern}" matches no layer whose change merges exactly; these '
                    f"standardise or compute their weights, or another layer reads them: {shorten(left)}: "
                    "use another freezing"
                )
        note = (
            f"lora leaves out {len(left)} of {len(names)} layers, whose weights are standardised, computed or "
            f"read by another layer, so that a change would not merge exactly: {shorten(left, 3)}"
        )
        if left and note not in target.source.notes:
            target.source.notes += (note,)
        return kept

    def merges(self, layer: nn.Module, inputs: Tensor | None) -> bool:
        """Return whether a random change gives the same outputs beside the layer and merged into it.

        ``inputs`` are the layer's own in a forward pass; None where no forward pass calls the layer.
        """
        import torch
        from peft import LoraModel
        from torch import nn

        if inputs is None or "weight" not in layer._parameters:
            return False
        if is_plain(layer):
            return True
        alone = nn.Sequential(copy.deepcopy(layer)).eval()
        try:
            with torch.no_grad():
                before = alone(inputs)
                tuner = LoraModel(alone, self.config(["0"]), "default").eval()
                for name, tensor in tuner.named_parameters():
                    if ".lora_B." in name:
                        tensor.normal_()
                beside = alone(inputs)
                merged: Any = tuner.merge_and_unload()
                inside = merged(inputs)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
            return False  # peft's change has another shape, as beside a dilated convolution
        size = float((beside - before).abs().max())
        return size > 0 and float((beside - inside).abs().max()) <= 1e-4 * size

    def changed(self, backbone: nn.Module) -> list[str]:
        """Return the layers of the backbone to change, in their order.

        Raises PlanError where a pattern matches none, or where a torch module would read their weights itself.
        """
        from torch import nn

        direct = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
        modules = dict(backbone.named_modules())
        if past := [n for n, m in modules.items() if isinstance(m, direct)]:
            kind = type(modules[past[0]]).__name__
            raise PlanError(
                f"freezing.lora: {past[0]} is torch's {kind}, which reads its layers' weights itself and "
                f"would pass a change by: use another freezing"
            )
        can = [
            n for n, m in modules.items() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
        ]
        for pattern in self.layers:
            if not any(fnmatchcase(n, pattern) for n in can):
                some = ", ".join(can[:5]) or "none"
                raise PlanError(
                    f'freezing.layers: "{pattern}" matches no linear layer or full convolution; there '
                    f"are: {some}{' …' if len(can) > 5 else ''}"
                )
        return [n for n in can if any(fnmatchcase(n, p) for p in self.layers)]


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer is torch's own, without hooks or options that peft's change would lack."""
    from torch import nn

    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return False
    if type(layer) is nn.Conv2d:
        return layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return type(layer) is nn.Linear


def inputs_of(backbone: nn.Module, names: Sequence[str], example: Inputs | None) -> dict[str, Tensor]:
    """Return the inputs of each named layer in a forward pass in eval mode; zeros without an example."""
    import torch

    some = next(backbone.parameters())
    if example is None:
        return {n: torch.zeros(0) for n in names}
    given: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def noted(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args:
                given.setdefault(name, args[0].detach())

        return noted

    hooks = [backbone.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    modes = [(m, m.training) for m in backbone.modules()]
    moved = map_inputs(lambda tensor: tensor.to(some.device), example)
    try:
        with torch.no_grad():
            backbone.eval()(moved)
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return given


def with_changes(target: Target, names: Sequence[str]) -> Target:
    """Return the target with the layers' changes as its blocks' tensors, in place of their own."""
    parameters = [n for n, _ in target.model.named_parameters()]
    modules = [n for n, _ in target.model.named_modules()]
    blocks = []
    for block in target.blocks:
        own = [m for n in names if (m := f"backbone.{n}") in block.modules]
        below = tuple(f"{m}." for m in own)
        changes = tuple(n for n in parameters if n.startswith(below) and ".lora_" in n)
        more = tuple(n for n in modules if n.startswith(below))
        if block.name != "head":
            block = replace(block, tensors=changes, modules=(*block.modules, *more))
        blocks.append(block)
    return replace(target, blocks=tuple(blocks))
