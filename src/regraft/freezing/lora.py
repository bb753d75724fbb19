"""LoRA: the source's weights stay as they are, a low-rank change is learnt beside them and merged.

    W' = W + s · B A,   A ∈ R^(r×in) random, B ∈ R^(out×r) zero at the start,   s = α / r

Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; rank-stabilised: s = α / √r, Kalajdzievski
2023, https://arxiv.org/abs/2312.03732; DoRA, direction and magnitude apart: Liu et al. 2024,
https://arxiv.org/abs/2402.09353. By peft. Linear layers and convolutions of one group have a change;
embeddings, norms and depthwise convolutions have none. What is saved has the source's own shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from ..errors import PlanError
from ..types import Target

if TYPE_CHECKING:
    from torch import nn


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
        """The target with changes that train in place of its backbone; merged at the end.

        Raises PlanError where no layer can have one, or a layer's forward would pass it by.
        """
        import torch
        from peft import LoraConfig, LoraModel

        backbone = target.model.get_submodule("backbone")
        names = self.changed(backbone)
        config: Any = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout,  # type: ignore[arg-type]
            use_rslora=self.variant == "rank_stabilised", use_dora=self.variant == "dora",
            target_modules="|".join(map(re.escape, names)),
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tuner = LoraModel(backbone, config, "default")
        try:
            yield with_changes(target, names)
        finally:
            merged = tuner.merge_and_unload()
            assert merged is backbone

    def changed(self, backbone: nn.Module) -> list[str]:
        """Layers of the backbone that have a change, in their order."""
        from torch import nn

        direct = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
        modules = dict(backbone.named_modules())
        if past := [n for n, m in modules.items() if isinstance(m, direct)]:
            kind = type(modules[past[0]]).__name__
            raise PlanError(
                [f"freezing.lora: {past[0]} is torch's {kind}, which reads its layers' weights itself and "
                 f"would pass a change by: use another freezing"]
            )  # fmt: skip
        can = [
            n for n, m in modules.items()
            if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
        ]  # fmt: skip
        for pattern in self.layers:
            if not any(fnmatchcase(n, pattern) for n in can):
                some = ", ".join(can[:5]) or "none"
                raise PlanError(
                    [f'freezing.layers: "{pattern}" matches no linear layer or full convolution; there '
                     f"are: {some}{' …' if len(can) > 5 else ''}"]
                )  # fmt: skip
        return [n for n in can if any(fnmatchcase(n, p) for p in self.layers)]


def with_changes(target: Target, names: Sequence[str]) -> Target:
    """The target whose blocks hold their layers' changes instead of their own tensors."""
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
