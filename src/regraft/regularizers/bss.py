"""Batch spectral shrinkage: let go of feature directions that hardly carry anything over.

    R(θ) = η · Σ_{i=1..k} σ²_{−i}   of the batch's features F [B, D]

σ_{−i} is the i-th smallest of the min(B, D) singular values of F. Chen, Wang, Fu, Long and Wang
2019 (NeurIPS), eq. 5, who take η = 0.001 and k = 1. It shapes the features of a batch, so it needs
batches of more than one row, and composes with any pull to θs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..types import Batch, Penalty, SourceRows, Target

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BSS:
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = False
    needs_source_data: ClassVar[bool] = False
    pulls_to_source: ClassVar[bool] = False
    shrinks_to_zero: ClassVar[bool] = False

    strength: float = 1e-3  # η
    k: int = 1  # singular values that are shrunk

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength takes 0 or more")
        if self.k < 1:
            raise ValueError("k takes 1 or more")

    def needs_optimizer(self) -> str:
        return ""

    def prepare(self, target: Target, source_data: SourceRows | None) -> Penalty:
        import torch

        def term(batch: Batch) -> torch.Tensor:
            # float32: the decomposition has no half precision
            values: torch.Tensor = torch.linalg.svdvals(batch.features.float())  # [min(B, D)]
            return self.strength * values.sort().values[: self.k].square().sum()

        return Penalty(term, per="batch")
