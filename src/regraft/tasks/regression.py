"""One or more numbers a row, learnt in standard deviations and reported in their own units.

    t = (y − mean) / std of the training rows,    loss_i = (1/C) Σ_c ℓ(z_ic − t_ic)

ℓ(e) is e² (mse), |e| (l1), or Huber's: e²/2 up to δ, δ·(|e| − δ/2) beyond (Huber 1964).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import DataError, did_you_mean, shorten

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray


METRICS = ("mae", "rmse", "r2")

Cells = Sequence[tuple[str, ...]]


def _wrong(cell: str) -> str | None:
    """Why a cell is no finite number, or None."""
    if not cell.strip():
        return "the number is empty"
    try:
        number = float(cell)
    except ValueError:
        return f'"{cell}" is not a number'
    return None if math.isfinite(number) else f'"{cell}" is not finite'


@dataclass(frozen=True)
class Regression:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    loss: Literal["mse", "huber", "l1"] = "mse"
    huber_delta: float = 1.0  # δ, in standard deviations of the target
    primary: str = "mae"  # the metric that choices are made by

    def __post_init__(self) -> None:
        if not (math.isfinite(self.huber_delta) and self.huber_delta > 0):
            raise ValueError(f"huber_delta must be above 0, not {self.huber_delta}")
        if self.primary not in METRICS:
            raise ValueError(f'primary has no "{self.primary}"; {did_you_mean(self.primary, METRICS)}')

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's numbers, in words, or None."""
        if not cells:
            return "the number is missing"
        return next((words for cell in cells if (words := _wrong(cell))), None)

    def strata(self, cells: Cells) -> list[str]:
        """The quantile bin of each row's first number: at most 5 bins, of 5 rows or more."""
        import numpy as np

        numbers = np.array([float(row[0]) for row in cells])
        bins = max(1, min(5, len(numbers) // 5))
        edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
        return [f"bin {b}" for b in np.searchsorted(edges, numbers, side="right")]

    def make(self, cells: Cells, columns: tuple[str, ...]) -> _Regression:
        """The task of these training numbers.

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
            loss_name=self.loss,
            huber_delta=self.huber_delta,
            mean=tuple(numbers.mean(0).tolist()),
            std=tuple(numbers.std(0).tolist()),
        )


@dataclass(frozen=True)
class _Regression:
    classes: tuple[str, ...]  # the names of the numbers
    primary: str
    loss_name: str
    huber_delta: float
    mean: tuple[float, ...]  # [C], of the training rows, own units
    std: tuple[float, ...]  # [C]
    name: str = "regression"
    metrics: tuple[str, ...] = METRICS

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's numbers, in words, or None."""
        if len(cells) != self.outputs:
            return f"{len(cells)} numbers where {self.outputs} belong"
        return next((words for cell in cells if (words := _wrong(cell))), None)

    def encode(self, cells: Cells) -> Tensor:
        """Label cells → [N, C] float32, in standard deviations. Raises DataError for a bad row."""
        import torch

        for i, row in enumerate(cells):
            if words := self.problem(row):
                raise DataError(f"row {i + 1}: {words}")
        numbers = torch.tensor([[float(c) for c in row] for row in cells], dtype=torch.float64)
        numbers = numbers.reshape(len(cells), self.outputs)
        return ((numbers - numbers.new_tensor(self.mean)) / numbers.new_tensor(self.std)).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B, C], both in standard deviations → mean over targets, [B]."""
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
        """logits [B, C] in standard deviations → [B, C] float64 in own units."""
        outputs = logits.double()
        return outputs * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)

    def label(self, scores: FloatArray) -> str:
        """The number, or several joined by ";", with six digits."""
        return ";".join(f"{v:.6g}" for v in scores)

    def truth(self, targets: Tensor) -> Tensor:
        """targets [N, C] in standard deviations → [N, C] float64 in own units."""
        return self.scores(targets)

    def constant(self, targets: Tensor) -> Tensor:
        """targets [N, C] → their mean [C] float64 in own units."""
        return self.scores(targets).mean(dim=0)

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "classes": list(self.classes),
            "primary": self.primary,
            "loss": self.loss_name,
            "huber_delta": self.huber_delta,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def restore(state: dict[str, Any]) -> _Regression:
    """The task that ``state()`` described."""
    return _Regression(
        classes=tuple(state["classes"]),
        primary=state["primary"],
        loss_name=state["loss"],
        huber_delta=state["huber_delta"],
        mean=tuple(state["mean"]),
        std=tuple(state["std"]),
    )
