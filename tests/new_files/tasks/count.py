"""Counts, learnt by the Poisson loss.

loss_i = (1/C) Σ_c [ exp(z_ic) − t_ic · z_ic ]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import DataError, shorten
from . import Cells, Task, TaskKind, TaskOptions

if TYPE_CHECKING:
    from torch import Tensor


class _Kind(TaskKind):
    name = "count"
    activation = "exp"
    default_metrics = ("mae", "rmse")
    summary_metrics = ("rmse",)


def _problem(cells: tuple[str, ...]) -> str | None:
    """Return why a row's cells are no counts; None if they are."""
    bad = [cell for cell in cells if not cell.strip().isdecimal()]
    return f'"{bad[0]}" is no count' if bad else None


@dataclass(frozen=True)
class Count(_Kind, TaskOptions):
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    primary: str = "mae"  # metric that choices are made by
    metrics: tuple[str, ...] = ()  # further files of metrics/ to compute

    def __post_init__(self) -> None:
        self.check_metrics()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return why a row's cells are no counts; None if they are."""
        return _problem(cells)

    def strata(self, cells: Cells) -> list[str]:
        """Return one stratum for all rows."""
        return ["all"] * len(cells)

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _Count:
        """Return the task of these counts. Raises DataError for a cell that is none."""
        if bad := [f"row {i + 1}: {why}" for i, row in enumerate(cells) if (why := self.problem(row))]:
            raise DataError(f"{len(bad)} of {len(cells)} training rows have no count ({shorten(bad, 3)})")
        return _Count(tuple(columns), self.primary, self.metrics)


@dataclass(frozen=True)
class _Count(_Kind, Task):
    classes: tuple[str, ...]
    primary: str
    further_metrics: tuple[str, ...] = ()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return why a row's cells are no counts; None if they are."""
        return _problem(cells) if len(cells) == self.outputs else f"{len(cells)} counts where {self.outputs} belong"

    def encode(self, cells: Cells) -> Tensor:
        """Return counts [N, C] float32. Raises DataError for a bad row."""
        import torch

        for i, row in enumerate(cells):
            if why := self.problem(row):
                raise DataError(f"row {i + 1}: {why}")
        return torch.tensor([[float(cell) for cell in row] for row in cells])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss [B] of logits [B, C] and counts [B, C]."""
        import torch.nn.functional as F

        logits = logits if logits.dtype.itemsize > 4 else logits.float()
        return F.poisson_nll_loss(logits, targets.to(logits.dtype), reduction="none").mean(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        """Return expected counts [B, C] float64."""
        return logits.double().exp()

    def constant(self, targets: Tensor) -> Tensor:
        """Return the mean count [C] float64."""
        return targets.double().mean(dim=0)


def restore(state: dict[str, Any]) -> _Count:
    """Return the task that ``state()`` described."""
    return _Count(tuple(state["classes"]), state["primary"], tuple(state.get("metrics", ())))
