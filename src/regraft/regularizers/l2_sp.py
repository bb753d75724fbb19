"""L2-SP: a pull of kept weights to their source values, and of fresh weights to zero.

    R(θ) = α/2 · Σ_kept ‖θ − θs‖²  +  β/2 · Σ_fresh ‖θ‖²

Li, Grandvalet and Davoine 2018, https://arxiv.org/abs/1802.01483, eq. 3. It is over trainable parameters:
all of the kept ones, biases and norms included; of the fresh ones the matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..model.types import Target
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows


@dataclass(frozen=True)
class L2SP(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = True
    pulls_to_source: ClassVar[bool] = True

    alpha: float = 0.1  # α, on kept weights
    beta: float = 0.01  # β, on fresh weights
    by_block: dict[str, float] = field(default_factory=dict, hash=False)  # factors, by pattern

    def __post_init__(self) -> None:
        if min([self.alpha, self.beta, *self.by_block.values()]) < 0:
            raise ValueError("alpha, beta and by_block take 0 or more")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import torch

        anchor, factors = target.anchor, target.factors(self.by_block)

        def term(batch: Batch) -> torch.Tensor:
            pull, shrink = batch.logits.new_zeros(()), batch.logits.new_zeros(())
            for name, p in batch.params.items():
                if name in anchor:
                    pull = pull + factors[name] * (p - anchor[name].to(p.device)).square().sum()
                elif p.ndim > 1:
                    shrink = shrink + factors[name] * p.square().sum()
            return self.alpha / 2 * pull + self.beta / 2 * shrink

        return Penalty(term, needs_inputs=False)
