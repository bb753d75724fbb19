"""Frozen blocks have no gradient, are in eval mode, and are in no optimizer group: all three are set together.

With ``requires_grad = False`` alone, batch-norm statistics would move and dropout would drop. No other file
sets requires_grad or calls train() and eval().
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import PlanError, did_you_mean

if TYPE_CHECKING:
    from .types import Target


def set_trainable(target: Target, trainable: Collection[str], batch_norm: Literal["frozen", "train"]) -> None:
    """Let exactly the named blocks train; all others are frozen.

    With ``batch_norm="frozen"``, batch norms in trainable blocks keep the source's statistics, while their
    scale and shift train.

    Raises PlanError for a block name that does not exist.
    """
    known = [b.name for b in target.blocks]
    if unknown := sorted(set(trainable) - set(known)):
        raise PlanError(f'no block is called "{unknown[0]}"; {did_you_mean(unknown[0], known)}')
    tensors = dict(target.model.named_parameters())
    modules = dict(target.model.named_modules())
    for block in target.blocks:
        train = block.name in trainable
        for name in block.tensors:
            if name in tensors:  # buffers have no gradient
                tensors[name].requires_grad_(train)
        for name in block.modules:
            keep_statistics = batch_norm == "frozen" and isinstance(modules[name], _BatchNorm)
            modules[name].training = train and not keep_statistics


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the whole model in eval mode inside the block; restore every module's mode afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def estimating_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms estimate their statistics anew inside the block, as the mean over its batches.

    All other modules are in eval mode. Every module's mode is restored afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    with eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None  # None: the cumulative mean
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model has batch norms."""
    return any(isinstance(m, _BatchNorm) for m in model.modules())
