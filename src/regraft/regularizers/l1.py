"""L1: sparse weights.

    R(θ) = λ · ‖θ‖₁  over trainable matrices (biases and norms are left alone)

Tibshirani 1996. The term is not differentiable at 0, where torch takes the subgradient 0; it
shrinks weights but gives no exact zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..types import Batch, Penalty, Target


@dataclass(frozen=True)
class L1:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    pulls_to_source: ClassVar[bool] = False
    shrinks_to_zero: ClassVar[bool] = True

    strength: float = 1e-5  # λ

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength takes 0 or more")

    def prepare(self, target: Target) -> Penalty:
        import torch

        def term(batch: Batch) -> torch.Tensor:
            weights = [p for p in batch.params.values() if p.ndim > 1]
            return self.strength * torch.stack([p.abs().sum() for p in weights]).sum()

        return Penalty(term)
