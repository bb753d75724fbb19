"""A pass of a frozen module over batches: features from a backbone, logits from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..compute.fsdp import has_shards
from ..data.batches import map_batches
from ..io.progress import stage
from .trainable import eval_mode

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..compute.arrays import Inputs
    from ..compute.device import Compute
    from ..data.batches import Batches


@dataclass(frozen=True)
class Outputs:
    """A module's outputs for every row of a split, in the split's order, on the CPU."""

    ids: tuple[str, ...]
    values: Tensor  # [N, D] or [N, C], float32
    targets: Tensor  # [N] or [N, C], as the task encoded them

    def take(self, rows: Sequence[int]) -> Outputs:
        """Return these rows in this order; no copy if they are all rows as they stand."""
        if len(rows) == len(self.ids) and all(i == row for i, row in enumerate(rows)):
            return self
        index = torch.as_tensor(rows, dtype=torch.long)
        return Outputs(tuple(self.ids[i] for i in rows), self.values[index], self.targets[index])


def outputs(module: nn.Module, batches: Batches, compute: Compute, precision: str = "float32") -> Outputs:
    """Compute every row's output with the module in eval mode, without gradient; its modes are restored.

    Raises RuntimeError if the ranks together did not compute each row once.
    """
    place = {e.id: i for i, e in enumerate(batches.examples)}  # batches of texts are sorted by length
    left = set(place)  # rows without an output
    values: Tensor | None = None
    targets: Tensor | None = None

    def run(ids: tuple[str, ...], inputs: Inputs, labels: Tensor) -> tuple[tuple[str, ...], Tensor, Tensor]:
        with compute.autocast(precision):
            return ids, module(compute.to_device(inputs)).float().cpu(), labels

    seen = stage("computing outputs", len(batches))
    # FSDP parameters gathered under inference_mode cannot be used in autograd later
    no_gradient = torch.no_grad() if has_shards(module) else torch.inference_mode()
    with eval_mode(module), no_gradient:
        for names, given, labels in map_batches(batches, run):
            if not left.issuperset(names):
                raise RuntimeError(f"outputs of rows that are not among {len(batches)}, or twice")
            left.difference_update(names)
            rows = torch.tensor([place[name] for name in names], dtype=torch.long)
            with torch.inference_mode(False):  # tensors made in inference mode cannot be used in autograd
                if values is None or targets is None:
                    values = given.new_empty(len(batches), *given.shape[1:])
                    targets = labels.new_empty(len(batches), *labels.shape[1:])
            values[rows], targets[rows] = given, labels
            seen.advance(len(names))
    if values is None or targets is None or left:
        raise RuntimeError(f"{len(batches) - len(left)} outputs for {len(batches)} rows")
    return Outputs(tuple(e.id for e in batches.examples), values, targets)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Join the rows of several parts, one after another."""
    return Outputs(
        tuple(i for part in parts for i in part.ids),
        torch.cat([part.values for part in parts]),
        torch.cat([part.targets for part in parts]),
    )
