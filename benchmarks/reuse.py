"""Savings by reuse: a step of the upper half, and the start of a second run.

    python benchmarks/reuse.py flowers17 folder

EfficientNet-Lite0, pictures as they stand, the lower half of the blocks frozen, batches of 32:
a step from pictures, from the cache, and of the upper blocks alone on tensors in memory, interleaved.
Then whole processes, from their start to the first fitting step, with an empty cache and a full one,
the default plan. Medians of ratios with their range.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from regraft.compute.malloc import freed_memory_kept
from regraft.data.batches import Batches
from regraft.model.trainable import set_trainable
from regraft.pipeline.feature_reuse import FitPhases
from regraft.pipeline.prepare import prepare
from regraft.plan.read import read_plan
from regraft.training import optimizers
from regraft.training.objective import Objective
from regraft.training.records import FitData

PAIRS, STARTS = 15, 5


class InMemory(Batches):
    """The first batches of an epoch, computed beforehand."""

    def __init__(self, of: Batches, count: int) -> None:
        super().__init__(of.rows, of.reader, of.order, of.compute)
        self.made = list(islice(of.epoch(1), count))


def ratio(name: str, over: list[float], under: list[float]) -> None:
    found = sorted(a / b for a, b in zip(over, under, strict=True))
    print(f"{name}: {statistics.median(found):.2f} [{found[0]:.2f}, {found[-1]:.2f}], n = {len(found)}")


@freed_memory_kept()  # as in a run
def steps(data: Path, out: Path) -> None:
    half = 4
    plan = read_plan(
        None,
        {
            "source.ref": "bundled:efficientnet-lite0",
            "data.path": str(data),
            "run.cache": str(out / "steps"),
            "augment.random_resized_crop": False,
            "augment.flip": False,
            "freezing": {"name": "last_blocks", "blocks": half},
        },
    )
    job = prepare(plan)
    target = job.initial_target(job.source, 0)
    names = [b.name for b in target.blocks]
    frozen = len(names) - 1 - half
    set_trainable(target, set(names[frozen:]), "frozen")
    groups = optimizers.groups(target, set(names[frozen:]), job.spec.settings.rates, 0.01)
    optimizer = optimizers.build("AdamW", {}, groups, before=None)
    params = {n: t for n, t in target.model.named_parameters() if t.requires_grad}
    live = Objective(target, job.spec, job.compute)
    cut = replace(live, cut=frozen)
    train = job.data.batches("train", train=True)
    began = time.perf_counter()
    feed = FitPhases(job, target, FitData(train), job.spec, job.outputs.store, lambda b: b)(frozen)
    print(
        f"cache of {len(train)} rows below {names[frozen]} ({frozen} of {len(names) - 1} blocks frozen): "
        f"{time.perf_counter() - began:.1f} s"
    )
    assert feed.cut == frozen
    size = job.plan.fit.batch_size
    memory = InMemory(feed.train, PAIRS + 1).made
    sides = {"live": iter(train.epoch(1)), "cache": iter(feed.train.epoch(1)), "upper": iter(memory)}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(PAIRS + 1):
        for name, batches in sides.items():
            start = time.perf_counter()
            objective = live if name == "live" else cut
            objective.step([next(batches)], params, optimizer, 1, i)
            spent[name].append(time.perf_counter() - start)
    print({n: f"{1e3 * statistics.median(s[1:]):.0f} ms a step of {size}" for n, s in spent.items()})
    ratio("a step, cache ÷ live", spent["cache"][1:], spent["live"][1:])
    ratio("a step, cache ÷ upper blocks alone", spent["cache"][1:], spent["upper"][1:])


def until_first_step(data: Path, cache: Path) -> float:
    """Return seconds from the start of a process to the end of its epoch 0, then end it."""
    out = Path(tempfile.mkdtemp())
    command = [
        sys.executable,
        "-m",
        "regraft",
        "fit",
        str(data),
        "--source",
        "bundled:efficientnet-lite0",
        "--out",
        str(out / "run"),
    ]
    environment = {**os.environ, "REGRAFT_CACHE": str(cache)}
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 0/" in line:
                break
        spent = time.perf_counter() - start
        process.terminate()
    shutil.rmtree(out)
    return spent


def starts(data: Path, out: Path) -> None:
    empty, full = [], []
    for i in range(STARTS):
        cache = out / f"cache{i}"
        empty.append(until_first_step(data, cache))
        full.append(until_first_step(data, cache))
        shutil.rmtree(cache)
    print(
        f"to the first step: {statistics.median(empty):.1f} s with an empty cache, "
        f"{statistics.median(full):.1f} s with a full one"
    )
    ratio("start, empty ÷ full", empty, full)


if __name__ == "__main__":
    torch.manual_seed(0)
    steps(Path(sys.argv[1]), Path(sys.argv[2]))
    starts(Path(sys.argv[1]), Path(sys.argv[2]))
