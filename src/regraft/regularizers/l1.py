"""L1: a penalty for sparse weights.

    R(θ) = λ · ‖θ‖₁  over trainable matrices (not biases and norms)

Tibshirani 1996. As a term it is not differentiable at 0, where torch takes the subgradient 0: it
shrinks weights but gives no exact zeros. ``proximal`` takes the penalty out of the gradient and
applies its proximal operator after each step, at the step's rate η, which gives exact zeros:

    θ ← sign(θ) · max(|θ| − η λ, 0)

Parikh and Boyd 2014, 4.2 and 6.5.2. For a step along the gradient this is the proximal gradient
method, so it needs SGD. With momentum it is close to the accelerated method.
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
    proximal: bool = False  # exact zeros by a step of its own; needs SGD

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
            each = [factors.get(n, 1.0) * p.abs().sum() for n, p in weights]  # LoRA's weights have no factor
            value = self.strength * torch.stack(each).sum()
            return value.detach() if self.proximal else value  # the log has it, the gradient does not

        def after(params: Mapping[str, torch.Tensor], rates: Mapping[str, float]) -> None:
            with torch.no_grad():
                for name, p in params.items():
                    if p.ndim > 1:
                        threshold = rates[name] * self.strength * factors.get(name, 1.0)
                        p.copy_(torch.nn.functional.softshrink(p, threshold))

        return Penalty(term, needs_inputs=False, after=after if self.proximal else None)
