"""Exponential moving average of the weights (Polyak and Juditsky 1992; torch.optim.swa_utils).

    θ̄_t = Σ_{i≤t} d^{t−i} θ_i ÷ Σ_{i≤t} d^{t−i}   over the weights after each of the t steps so far

The division corrects the bias (as in Kingma and Ba 2015, section 3): without it the first step's
weights would count as all that came before them, which in a short fit is nearly everything (94 % of
an average with d = 0.999 after 66 steps). As d approaches 1, θ̄ is the plain mean of all steps.
The average is what is judged and kept; training goes on from θ. Buffers are those of θ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn


def average_of(model: nn.Module, decay: float) -> AveragedModel | None:
    """An average that ``update_parameters(model)`` moves; none for a decay of 0."""

    if not decay:
        return None

    def move(averages: Any, weights: Any, steps: Any) -> None:
        before = int(average.n_averaged)  # on the CPU, unlike ``steps``, which would be waited for
        share = (1 - decay) / (1 - decay ** (before + 1))
        get_ema_multi_avg_fn(1 - share)(averages, weights, steps)  # type: ignore[no-untyped-call]

    average = AveragedModel(model, multi_avg_fn=move)
    return average


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
