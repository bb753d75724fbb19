"""Batch spectral shrinkage: a penalty on the feature directions that transfer least.

    R(θ) = η · Σ_{i=1..k} σ²_{−i}   of the batch's features F [B, D]

σ_{−i} is the i-th smallest of the min(B, D) singular values of F. Chen, Wang, Fu, Long and Wang
2019 (NeurIPS), eq. 5, who take η = 0.001 and k = 1. It acts on the features of a batch, so it needs
batches of more than one row. It combines with any pull to θs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.types import Target
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BSS(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    strength: float = 1e-3  # η
    k: int = 1  # singular values that are shrunk

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength takes 0 or more")
        if self.k < 1:
            raise ValueError("k takes 1 or more")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import torch

        def term(batch: Batch) -> torch.Tensor:
            # float32: the decomposition has no half precision
            values: torch.Tensor = torch.linalg.svdvals(batch.features.float())  # [min(B, D)]
            return self.strength * values.sort().values[: self.k].square().sum()

        return Penalty(term, per="batch", needs_inputs=False)
