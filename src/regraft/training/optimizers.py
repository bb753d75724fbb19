"""Optimizers of torch by name, with one parameter group a block, and weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from ..compute.distributed import is_sharded
from ..errors import PlanError, did_you_mean

if TYPE_CHECKING:
    from ..model.types import Target


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return torch's optimizer of that name. Raises PlanError, listing torch's optimizers, for another name."""
    known = {
        n: c
        for n, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and n != "Optimizer"
    }
    if name not in known:
        raise PlanError(f'fit.optimizer: torch has no "{name}"; {did_you_mean(name, known)}')
    return known[name]


def groups(
    target: Target, trainable: Collection[str], rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups of the trainable blocks: each block's matrices, then its biases and norms."""
    parameters = dict(target.model.named_parameters())
    out: list[dict[str, Any]] = []
    for block in target.blocks:
        if block.name not in trainable:
            continue
        own = [parameters[n] for n in block.tensors if n in parameters]
        for part, decay in (([p for p in own if p.ndim > 1], weight_decay), ([p for p in own if p.ndim <= 1], 0.0)):
            if part:
                out.append({"params": part, "block": block.name, "lr": rates[block.name], "weight_decay": decay})
    return out


def build(
    name: str,
    options: Mapping[str, Any],
    param_groups: list[dict[str, Any]],
    before: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer over the groups; parameters that ``before`` already trained keep their state.

    Raises PlanError for an option that the optimizer does not take, or a value that it refuses.
    """
    cls = optimizer_class(name)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    # a fused step passes over memory once, not ten times: 75 → 14 ms for 23 million weights on 2 cores
    parameters = [p for group in param_groups for p in group["params"]]
    if (
        "fused" in signature(cls).parameters
        and not {"fused", "foreach", "differentiable"} & set(values)
        and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        and not any(is_sharded(p) for p in parameters)  # not every fused optimizer supports DTensor
    ):
        values["fused"] = True
    try:
        made = cls(param_groups, **values)
    except (TypeError, ValueError) as error:
        raise PlanError(f"fit.optimizer_options: {name} refuses them: {error}") from error
    if before is not None:
        for group in made.param_groups:
            for p in group["params"]:
                if p in before.state:
                    made.state[p] = before.state[p]
    return made
