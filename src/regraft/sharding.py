"""Weights divided among the processes while they train: torch's FSDP2.

Each process holds its share of the weights, of their gradients and of the optimiser's state; the rest
of a block is fetched for as long as the block computes. Every process takes part in every forward pass.

What is left of a fit, from the frontier on, has the whole weights on each device again, but neither
gradients nor an optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from . import processes
from .errors import PlanError, shorten
from .features import divided
from .types import Adapting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .plan import Plan
    from .types import Freezing, Penalty, Regularizer, Target


# steps that look at each weight alone, so that a share of a tensor is stepped as the whole is
ELEMENTWISE = (
    "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop",
)  # fmt: skip


def check_shard(
    plan: Plan,
    freezing: Freezing,
    penalties: Mapping[str, tuple[Regularizer, Penalty]],
    target: Target,
) -> None:
    """Raises PlanError for what does not go with divided weights."""
    seen: dict[int, str] = {}
    tied: list[str] = []
    for name, p in target.model.named_parameters(remove_duplicate=False):
        if seen.setdefault(id(p), name) != name:
            tied.append(f"{seen[id(p)]} = {name}")
    single = [name for name, p in target.model.named_parameters() if p.ndim == 0]
    problems = [
        f"run.shard: {what}"
        for wrong, what in (
            (plan.run.spread == "arms", 'arms hold whole models: set run.spread to "rows"'),
            (
                plan.run.layout == "channels_last",
                'divided weights are contiguous: set run.layout to "contiguous"',
            ),
            (plan.fit.compile, "divided weights are not compiled: set fit.compile to false"),
            (plan.fit.average > 0, "an average would hold the whole weights: set fit.average to 0"),
            (plan.fit.views > 0, "every step runs from the first block on: set fit.views to 0"),
            (
                plan.fit.optimizer not in ELEMENTWISE,
                f"{plan.fit.optimizer} may look at whole tensors: choose of {', '.join(ELEMENTWISE)}",
            ),
            (
                plan.source_data.each_epoch,
                "source_data.each_epoch takes the whole weights: unset it",
            ),
            (isinstance(freezing, Adapting), "adapters are small enough: choose another freezing"),
            (bool(tied), f"tied weights cannot be divided ({shorten(tied, 3)}): set it to false"),
            (
                bool(single),
                f"weights of no dimension cannot be ({shorten(single, 3)}): set it to false",
            ),
        )
        if wrong
    ]
    problems += [
        f"run.shard: regularizer {name} takes whole weights, of the source or of a sample: remove it"
        for name, (options, penalty) in penalties.items()
        if options.uses_source
        or options.needs_source_data
        or penalty.per == "step"
        or penalty.maps
        or penalty.after
    ]
    if problems:
        raise PlanError(problems)


@contextmanager
def aside(module: nn.Module, so: bool = True) -> Iterator[None]:
    """On the CPU inside, if ``so``, and where it was afterwards; not after an error, which ends the run."""
    some = next(module.parameters(), None)
    where = torch.device("cpu") if some is None else some.device
    if so:
        module.cpu()
    yield
    if so:
        module.to(where)


@contextmanager
def sharded(target: Target, device: torch.device) -> Iterator[Target]:
    """A copy of the target, divided among the processes, to be fitted in its place; afterwards the
    target has the copy's weights and lies on the device. Meanwhile it lies on the CPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    processes.same(target.model.to(device))
    model = copy.deepcopy(target.model.cpu()).to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (processes.size(),))
    # a block is fetched as a whole, so each of its outermost modules is divided, then what is left over
    parts = [m for block in outermost(target) for m in map(model.get_submodule, block)]
    parts += [model.get_submodule("backbone"), model.get_submodule("head")]
    for part in dict.fromkeys(parts):
        if not any(True for _ in part.parameters()):
            continue
        # fetched parts are parameters while they last: after any pass the shares are again, which the
        # optimiser and the gradient's norm know
        made: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # a loss is divided by the rows of all processes, so gradients are summed
        made.set_force_sum_reduction_for_comms(True)
        made.set_gradient_divide_factor(1.0)
    yield replace(target, model=model)
    # not after an error, which may be that of one process alone
    target.model.load_state_dict({n: together(t) for n, t in model.state_dict().items()})
    target.model.to(device)


def outermost(target: Target) -> list[list[str]]:
    """Each backbone block's modules that lie in no other of it, hold nothing of another block, and can
    be called."""
    from torch.nn import ModuleDict, ModuleList

    found = []
    for block in target.blocks[:-1]:
        others = [m for b in target.blocks if b.name != block.name for m in b.modules]
        own = [
            name
            for name in block.modules
            if not isinstance(target.model.get_submodule(name), ModuleList | ModuleDict)
            and not any(other.startswith(f"{name}.") for other in others)
        ]
        found.append([n for n in own if not any(n.startswith(f"{m}.") for m in own)])
    return found


def whole(tensor: Tensor) -> Tensor:
    """A divided tensor put together, for which all processes must ask; another one as it is."""
    held: Any = tensor
    together: Tensor = held.full_tensor() if processes.divided(tensor) else tensor
    return together


def together(tensor: Tensor) -> Tensor:
    """A divided tensor put together on the CPU, so that a device holds one at a time; another as it is."""
    return whole(tensor.detach()).cpu() if processes.divided(tensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """As :func:`together` in the first process; the others help and keep their share."""
    if not processes.divided(tensor) or processes.first():
        return together(tensor)
    whole(tensor.detach())
    return tensor


def share(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal in all processes, divided as ``like`` is."""
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    divided_: Tensor = distribute_tensor(
        value.to(held.device), held.device_mesh, held.placements, src_data_rank=None
    )
    return divided_


def put_whole(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Whole tensors, equal in all processes, into a model that may be divided.

    Raises RuntimeError where they are of another model.
    """
    if not divided(model):
        model.load_state_dict(dict(state))
        return
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise RuntimeError(f"{name} is not the same tensor in both")
    with torch.no_grad():
        for name, held in own.items():
            value = state[name]
            held.copy_(share(value, held) if processes.divided(held) else value)
