"""Exponential moving average of the weights (Polyak and Juditsky 1992; torch.optim.swa_utils).

    θ̄ ← d · θ̄ + (1 − d) · θ   after every step, from the first step's θ on

The average is what is judged and kept; training goes on from θ. Buffers are those of θ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn


def average_of(model: nn.Module, decay: float) -> AveragedModel | None:
    """An average that ``update_parameters(model)`` moves; none for a decay of 0."""
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=rule) if decay else None


@contextmanager
def averaged(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """The model with its average's weights inside, with its own afterwards."""
    if average is None or not int(average.n_averaged):
        yield
        return
    own = [p.detach().clone() for p in model.parameters()]
    put(model, list(average.module.parameters()))
    try:
        yield
    finally:
        put(model, own)


def put(model: nn.Module, values: list[torch.Tensor] | list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)
