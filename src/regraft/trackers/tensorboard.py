"""TensorBoard event files, by torch's own writer: a folder a seed, and one for the end.

OUT/seed-0/…   val/accuracy, loss/task, rate/head …, by epoch
OUT/end/…      test/accuracy, test/accuracy low …; the summary and the plan as text
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiskError, UsageError
from . import EpochFigures, RunEnd, as_code

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


needs = ("tensorboard",)


def track(
    name: str, params: Mapping[str, str], epochs: Iterable[EpochFigures], end: Callable[[], RunEnd], where: str
) -> str:
    """Write a run's event files as it goes on; return where they are.

    Raises UsageError where OUT is not empty, because TensorBoard would draw both runs as one line.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    out = Path(where)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not written over: remove it, or choose another --out")
    writers: dict[str, SummaryWriter] = {}

    def writer(part: str) -> SummaryWriter:
        if part not in writers:
            writers[part] = SummaryWriter(str(out / part))
        return writers[part]

    try:
        for line in epochs:
            to = writer(f"seed-{line.seed}")
            for key, value in line.figures.items():
                to.add_scalar(key, value, line.epoch)
            to.flush()
        found, last = end(), writer("end")
        for key, value in found.metrics.items():
            last.add_scalar(key, value, 0)
        texts = {
            "summary": found.note,
            "tags": "\n".join(f"{k}: {v}" for k, v in found.tags.items()),
            "plan": "\n".join(f"{k} = {v}" for k, v in params.items()),
        }
        for key, text in texts.items():
            last.add_text(key, as_code(text), 0)
    except OSError as error:
        raise DiskError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        for each in writers.values():
            each.close()
    return f"{name} is in {out}; look at it with: {shlex.join(['tensorboard', '--logdir', str(out)])}"
