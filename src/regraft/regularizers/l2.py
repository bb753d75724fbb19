"""L2: a penalty for small weights.

    R(θ) = λ/2 · ‖θ‖²  over trainable matrices (not biases and norms)

Goodfellow, Bengio and Courville 2016, 7.1.1. With SGD and no clipping this is weight_decay = λ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..model.types import Target
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows


@dataclass(frozen=True)
class L2(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    shrinks_to_zero: ClassVar[bool] = True

    strength: float = 1e-4  # λ
    by_block: dict[str, float] = field(default_factory=dict, hash=False)  # factors, by pattern

    def __post_init__(self) -> None:
        if min([self.strength, *self.by_block.values()]) < 0:
            raise ValueError("strength and by_block take 0 or more")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import torch

        factors = target.factors(self.by_block)

        def term(batch: Batch) -> torch.Tensor:
            weights = [(n, p) for n, p in batch.params.items() if p.ndim > 1]
            each = [factors.get(n, 1.0) * p.square().sum() for n, p in weights]  # LoRA's weights have no factor
            return self.strength / 2 * torch.stack(each).sum()

        return Penalty(term, needs_inputs=False)
