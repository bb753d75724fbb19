"""Learning without forgetting: a penalty for answers unlike the source's on the target's own inputs.

    R(θ) = λ · T² · (1/B) Σ_b KL( p_s(x_b; T) ‖ p(x_b; T) )

    p_s   softmax of head_s(backbone(x; θs)) / T: the source model
    p     softmax of head_s(backbone(x; θ)) / T: the fitted features through the source's own head

Li and Hoiem 2016, 1606.09282, eq. 3, with the T² of Hinton, Vinyals and Dean 2015 (1503.02531,
section 2), so that λ means the same at every T. KL differs from their cross-entropy by a constant.
The paper also trains the source head; here it stays fixed. No source data are needed. A clone of the source's
backbone runs beside the model on the same augmented view, so a step takes about a third longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import PlanError
from ..model.types import Target
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LwF(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = True

    strength: float = 1.0  # λ
    temperature: float = 2.0  # T

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength takes 0 or more")
        if self.temperature <= 0:
            raise ValueError("temperature takes more than 0")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import copy

        import torch
        from torch.nn.functional import kl_div, log_softmax

        source = target.source
        if source.head is None:
            raise PlanError(
                f"regularizers.lwf needs the source's own head, and {source.name} has none: remove it, or take l2_sp"
            )
        if not source.has_classes:
            raise PlanError(
                f"regularizers.lwf compares classes, and the head of {source.name} is one of "
                f"{source.task}: remove it, or take l2_sp"
            )
        backbone = copy.deepcopy(source.backbone).eval()
        head = copy.deepcopy(source.head).eval()

        def term(batch: Batch) -> torch.Tensor:
            device = batch.features.device
            with torch.no_grad():
                before = head.to(device)(backbone.to(device)(batch.inputs))  # [B, C of the source]
            fixed = {n: p.detach() for n, p in head.named_parameters()}
            now = torch.func.functional_call(head, fixed, (batch.features,))
            t = self.temperature
            p_s, p = log_softmax(before / t, dim=1), log_softmax(now / t, dim=1)
            divergence = kl_div(p, p_s, log_target=True, reduction="batchmean")
            return self.strength * t**2 * divergence

        return Penalty(term, per="batch")
