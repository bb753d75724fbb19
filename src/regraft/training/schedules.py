"""Learning rates: smaller for what came from the source, by block; a schedule over progress.

    rate(block k of K, counted from the input) = lr · layer_decay^(K−1−k),   rate(head) = head_lr
    at step s of T: rate · warm-up(s) · schedule(progress),   progress in [0, 1]

Layer decay: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, 3.2 (their factor is 1/2.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..model.types import match_blocks

Schedule = Callable[[float], float]  # progress in [0, 1] → factor

SCHEDULES: Mapping[str, Schedule] = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
}


def block_rates(
    blocks: Sequence[str],
    *,
    lr: float,
    head_lr: float,
    layer_decay: float = 1.0,
    overrides: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Block → rate, input → output, the last block being the head.

    Raises PlanError where an override's pattern matches no block.
    """
    *backbone, head = blocks
    depth = len(backbone)
    rates = {name: lr * layer_decay ** (depth - 1 - k) for k, name in enumerate(backbone)}
    rates[head] = head_lr
    for pattern, rate in (overrides or {}).items():
        rates |= dict.fromkeys(match_blocks(pattern, blocks), rate)
    return rates


def factor(schedule: Schedule, *, step: int, steps: int, warm: int, thawed: int = 0) -> float:
    """What a block's rate is multiplied by at ``step`` (from 0) of ``steps``.

    ``thawed`` is the step at which the block began to train: its warm-up starts there, while the
    schedule runs on for all blocks alike from the end of the first warm-up.
    """
    rising = min(1.0, (step - thawed + 1) / warm) if warm else 1.0
    progress = max(0.0, (step - warm) / max(1, steps - warm))
    return rising * schedule(min(1.0, progress))
