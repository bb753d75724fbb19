"""Sharpness-aware minimisation: descend by the gradient at the worst point nearby.

    θ ← θ − η · ∇L(θ + ε),   ε = ρ · ∇L(θ) ÷ ‖∇L(θ)‖₂

Foret, Kleiner, Mobahi and Neyshabur 2021, 2010.01412, eq. 2 and 3 with p = 2. The norm is over all
trainable parameters. A step takes two gradients, on the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..compute.fsdp import full_tensor

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def ascend(parameters: Iterable[Tensor], rho: float) -> Iterator[None]:
    """Move parameters to θ + ε inside the block, without a gradient, and back to θ afterwards, to the bit.

    Parameters stay at θ if the gradient is zero or not finite.
    """
    moved = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in moved if p.grad is not None]
    here = [p.detach().clone() for p in moved]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    reach = float(rho / norm)  # read once: each read synchronises the device
    with torch.no_grad():
        for p, g in zip(moved, gradients, strict=True):
            if 0 < reach < float("inf"):
                p.add_(g, alpha=reach)
            p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p, was in zip(moved, here, strict=True):
                p.copy_(was)
