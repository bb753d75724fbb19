"""Exponential moving average of the weights (Polyak and Juditsky 1992; torch.optim.swa_utils).

    θ̄_t = Σ_{i≤t} d^{t−i} θ_i ÷ Σ_{i≤t} d^{t−i}   over the weights after each of the t steps so far

The division corrects the bias (as in Kingma and Ba 2015, section 3). Without it the first step's weights
would stand for all earlier ones, which is nearly everything in a short fit: 94 % of an average with
d = 0.999 after 66 steps. As d approaches 1, θ̄ becomes the plain mean of all steps. Validation and
checkpoints of the best epoch take θ̄, and training goes on from θ. Buffers are those of θ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return an average that ``update_parameters(model)`` moves; None for a decay of 0."""
    if not decay:
        return None

    def move(averages: Any, weights: Any, steps: Any) -> None:
        before = int(average.n_averaged)  # on the CPU; reading ``steps`` would synchronise the device
        share = (1 - decay) / (1 - decay ** (before + 1))
        get_ema_multi_avg_fn(1 - share)(averages, weights, steps)  # type: ignore[no-untyped-call]

    average = AveragedModel(model, multi_avg_fn=move)
    return average


@contextmanager
def use_average(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """Give the model its average's weights inside the block, and its own afterwards."""
    if average is None or not int(average.n_averaged):
        yield
        return
    own = [p.detach().clone() for p in model.parameters()]
    load_parameters(model, list(average.module.parameters()))
    try:
        yield
    finally:
        load_parameters(model, own)


def load_parameters(model: nn.Module, values: list[torch.Tensor] | list[torch.nn.Parameter]) -> None:
    """Copy values, in the order of the model's parameters, into the model."""
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)
