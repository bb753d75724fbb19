"""Choice between epochs by a validation metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..metrics import Metric


def improves(new: dict[str, float], old: dict[str, float], metric: Metric) -> bool:
    """Return whether the primary metric is better, or is equal with a lower loss."""
    (primary,) = (k for k in new if k != "loss")
    gain = new[primary] - old[primary]
    gain = gain if metric.higher_is_better else -gain
    return gain > 0 or (gain == 0 and new["loss"] < old["loss"])
