"""One or more numbers a row, learnt in standard deviations and reported in their own units.

    t = (y − mean) / std of the training rows,    loss_i = (1/C) Σ_c ℓ(z_ic − t_ic)

ℓ(e) is e² (mse), |e| (l1), or Huber's: e²/2 up to δ, δ·(|e| − δ/2) beyond (Huber 1964).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..errors import DataError, shorten
from . import Cells, Task, TaskKind, TaskOptions, fields_of

if TYPE_CHECKING:
    from torch import Tensor


def _wrong(cell: str) -> str | None:
    """Return why a cell is no finite number; None if it is one."""
    if not cell.strip():
        return "the number is empty"
    try:
        number = float(cell)
    except ValueError:
        return f'"{cell}" is not a number'
    return None if math.isfinite(number) else f'"{cell}" is not finite'


class _Kind(TaskKind):
    name = "regression"
    default_metrics = ("mae", "rmse", "r2")
    summary_metrics = ("mae", "r2")


@dataclass(frozen=True)
class Regression(_Kind, TaskOptions):
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    loss: Literal["mse", "huber", "l1"] = "mse"
    huber_delta: float = 1.0  # δ, in standard deviations of the target
    primary: str = "mae"  # metric that choices are made by
    metrics: tuple[str, ...] = ()  # further files of metrics/ to compute

    def __post_init__(self) -> None:
        if not (math.isfinite(self.huber_delta) and self.huber_delta > 0):
            raise ValueError(f"huber_delta must be above 0, not {self.huber_delta}")
        self.check_metrics()

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return what is wrong with one row's numbers; None if nothing is."""
        if not cells:
            return "the number is missing"
        return next((words for cell in cells if (words := _wrong(cell))), None)

    def strata(self, cells: Cells) -> list[str]:
        """Return the quantile bin of each row's first number: at most 5 bins, of 5 rows or more."""
        import numpy as np

        numbers = np.array([float(row[0]) for row in cells])
        bins = max(1, min(5, len(numbers) // 5))
        edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
        return [f"bin {b}" for b in np.searchsorted(edges, numbers, side="right")]

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _Regression:
        """Return the task of these training numbers.

        Raises DataError for a cell that is no finite number, or a column that does not vary.
        """
        import numpy as np

        bad = [f"row {i + 1}: {p}" for i, row in enumerate(cells) if (p := self.problem(row))]
        if bad:
            raise DataError(
                f"{len(bad)} of {len(cells)} training rows have no number ({shorten(bad, 3)}): "
                "mend or remove them, or say --task classification"
            )
        if not cells or not columns:
            raise DataError("regression needs training rows and a label column")
        numbers = np.array([[float(cell) for cell in row] for row in cells])  # [N, C]
        still = [c for c, low, high in zip(columns, numbers.min(0), numbers.max(0), strict=True) if low == high]
        if still:
            raise DataError(
                f"the target {shorten(still)} is the same in every training row: there is nothing "
                "to learn; name another label column"
            )
        return _Regression(
            classes=tuple(columns),
            primary=self.primary,
            further_metrics=self.metrics,
            loss_name=self.loss,
            huber_delta=self.huber_delta,
            mean=tuple(numbers.mean(0).tolist()),
            std=tuple(numbers.std(0).tolist()),
        )


@dataclass(frozen=True)
class _Regression(_Kind, Task):
    classes: tuple[str, ...]  # the names of the numbers
    primary: str
    loss_name: str
    huber_delta: float
    mean: tuple[float, ...]  # [C], of the training rows, own units
    std: tuple[float, ...]  # [C]
    further_metrics: tuple[str, ...] = ()

    @property
    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (std [C], mean [C]) of the training rows."""
        return self.std, self.mean

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """Return what is wrong with one row's numbers; None if nothing is."""
        if len(cells) != self.outputs:
            return f"{len(cells)} numbers where {self.outputs} belong"
        return next((words for cell in cells if (words := _wrong(cell))), None)

    def encode(self, cells: Cells) -> Tensor:
        """Return targets [N, C] float32 of label cells, in standard deviations. Raises DataError for a bad row."""
        import torch

        for i, row in enumerate(cells):
            if words := self.problem(row):
                raise DataError(f"row {i + 1}: {words}")
        numbers = torch.tensor([[float(c) for c in row] for row in cells], dtype=torch.float64)
        numbers = numbers.reshape(len(cells), self.outputs)
        return ((numbers - numbers.new_tensor(self.mean)) / numbers.new_tensor(self.std)).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over outputs [B] of logits [B, C] and targets [B, C], both in standard deviations."""
        import torch.nn.functional as F

        outputs = logits if logits.dtype.itemsize > 4 else logits.float()  # float64 stays
        targets = targets.to(outputs.dtype)
        if self.loss_name == "mse":
            cells = F.mse_loss(outputs, targets, reduction="none")
        elif self.loss_name == "l1":
            cells = F.l1_loss(outputs, targets, reduction="none")
        else:
            cells = F.huber_loss(outputs, targets, reduction="none", delta=self.huber_delta)
        return cells.mean(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        """Return numbers [B, C] float64 in own units of logits [B, C] in standard deviations."""
        outputs = logits.double()
        return outputs * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)

    def truth(self, targets: Tensor) -> Tensor:
        """Return numbers [N, C] float64 in own units of targets [N, C] in standard deviations."""
        return self.scores(targets)

    def constant(self, targets: Tensor) -> Tensor:
        """Return the mean [C] float64 in own units of targets [N, C]."""
        return self.scores(targets).mean(dim=0)

    def state(self) -> dict[str, Any]:
        """Return plain JSON for ``restore``."""
        return {
            **super().state(),
            "loss": self.loss_name,
            "huber_delta": self.huber_delta,
            "mean": list(self.mean),
            "std": list(self.std),
        }


STATE = {
    "loss": Literal["mse", "huber", "l1"],
    "huber_delta": Annotated[float, Field(gt=0, le=1e100)],
    "mean": list[Annotated[float, Field(ge=-1e100, le=1e100)]],
    "std": list[Annotated[float, Field(gt=0, le=1e100)]],
}


def restore(state: dict[str, Any]) -> _Regression:
    """Return the task that ``state()`` described. Raises ValueError unless each number has its mean and deviation."""
    if len({len(state[key]) for key in ("classes", "mean", "std")}) > 1:
        raise ValueError("mean and std are not one for each number")
    return _Regression(loss_name=state["loss"], **fields_of(_Regression, state))
