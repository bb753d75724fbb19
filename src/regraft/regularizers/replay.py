"""Replay: the loss of the source task, beside the target's.

    R(θ) = λ · (1/B) Σ_b L_source(head_s(backbone(x_b; θ)), y_b),   (x_b, y_b) from source data

Each batch of B target rows comes with B source rows, which pass through the source's own, fixed head. Rolnick,
Ahuja, Schwarz, Lillicrap and Wayne 2019, 1811.11682 (CLEAR), section 3: the term on stored examples of the old
task.
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
class Replay(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = True
    needs_source_data: ClassVar[bool] = True

    strength: float = 1.0  # λ

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength takes 0 or more")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        import copy

        import torch

        if source_data is None or target.source.head is None:
            raise PlanError(
                'regularizer "replay" needs labelled source data and the source\'s own head: add '
                "--source-data PATH, or remove it"
            )
        backbone = target.model.get_submodule("backbone")
        head = copy.deepcopy(target.source.head).eval()
        fixed = {n: p.detach() for n, p in head.named_parameters()}
        task, rows = source_data.task, source_data.draws()

        def term(batch: Batch) -> torch.Tensor:
            _, inputs, labels = next(rows)
            now = {n: p.to(batch.features.device) for n, p in fixed.items()}
            logits = torch.func.functional_call(head, now, (backbone(inputs),))
            return self.strength * task.loss(logits, labels).mean()

        return Penalty(term, per="batch", needs_inputs=False, draws=rows)
