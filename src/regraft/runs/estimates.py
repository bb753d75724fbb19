"""A figure with its interval."""

from __future__ import annotations

from dataclasses import dataclass

# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
