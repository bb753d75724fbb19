"""Frozen means: no gradient, eval mode, and in no optimiser group, all three set together.

``requires_grad = False`` alone lets batch-norm statistics move and dropout drop. This is the only
file that touches requires_grad and train()/eval().
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

    ``batch_norm="frozen"`` keeps the statistics of batch norms in trainable blocks as the source
    has them, while their scale and shift train.

    Raises PlanError for a block name that does not exist.
    """
    known = [b.name for b in target.blocks]
    if unknown := sorted(set(trainable) - set(known)):
        raise PlanError([f'no block is called "{unknown[0]}"; {did_you_mean(unknown[0], known)}'])
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
    """The whole model in eval mode; afterwards every module is in the mode it had."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def estimating_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms begin their statistics anew and take the plain mean over the batches that pass;
    all else is in eval mode. Afterwards every module is in the mode it had."""
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
    return any(isinstance(m, _BatchNorm) for m in model.modules())
