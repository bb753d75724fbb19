"""L2: small weights.

    R(θ) = λ/2 · ‖θ‖²  over trainable matrices (biases and norms are left alone)

Goodfellow, Bengio and Courville 2016, 7.1.1. With SGD and no clipping this is weight_decay = λ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..types import Batch, Penalty, Regularizer, SourceRows, Target, TrainRows


@dataclass(frozen=True)
class L2(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    shrinks_to_zero: ClassVar[bool] = True

    strength: float = 1e-4  # λ

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength takes 0 or more")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import torch

        def term(batch: Batch) -> torch.Tensor:
            weights = [p for p in batch.params.values() if p.ndim > 1]
            return self.strength / 2 * torch.stack([p.square().sum() for p in weights]).sum()

        return Penalty(term, needs_inputs=False)
