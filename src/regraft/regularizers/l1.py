"""L1: sparse weights.

    R(θ) = λ · ‖θ‖₁  over trainable matrices (biases and norms are left alone)

Tibshirani 1996. As a term it is not differentiable at 0, where torch takes the subgradient 0: it
shrinks weights but gives no exact zeros. ``proximal`` takes the penalty out of the gradient and
applies its proximal operator after each step, at the step's rate η, which does:

    θ ← sign(θ) · max(|θ| − η λ, 0)

Parikh and Boyd 2014, 4.2 and 6.5.2. That is the proximal gradient method for a step along the
gradient, so it goes with SGD alone; with momentum it is its accelerated kin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ..model.types import Target
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class L1(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    shrinks_to_zero: ClassVar[bool] = True

    strength: float = 1e-5  # λ
    by_block: dict[str, float] = field(default_factory=dict, hash=False)  # factors, by pattern
    proximal: bool = False  # exact zeros, by a step of its own; with SGD only

    def __post_init__(self) -> None:
        if min([self.strength, *self.by_block.values()]) < 0:
            raise ValueError("strength and by_block take 0 or more")

    def needs_fit(self) -> Mapping[str, str]:
        return {"optimizer": "SGD"} if self.proximal else {}

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import torch

        factors = target.factors(self.by_block)

        def term(batch: Batch) -> torch.Tensor:
            weights = [(n, p) for n, p in batch.params.items() if p.ndim > 1]
            each = [factors.get(n, 1.0) * p.abs().sum() for n, p in weights]  # LoRA's have none
            value = self.strength * torch.stack(each).sum()
            return value.detach() if self.proximal else value  # logged, and not in the gradient

        def after(params: Mapping[str, torch.Tensor], rates: Mapping[str, float]) -> None:
            with torch.no_grad():
                for name, p in params.items():
                    if p.ndim > 1:
                        threshold = rates[name] * self.strength * factors.get(name, 1.0)
                        p.copy_(torch.nn.functional.softshrink(p, threshold))

        return Penalty(term, needs_inputs=False, after=after if self.proximal else None)
