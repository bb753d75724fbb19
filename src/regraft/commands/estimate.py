"""What ``regraft plan`` prints: the table of blocks, and time and memory from one timed batch."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from io import StringIO

import torch

from ..compute.malloc import freed_memory_kept
from ..evidence.frontier import ALPHAS
from ..evidence.linear_probe import affordable
from ..model.forward import outputs
from ..model.grafting import graft
from ..pipeline.arms import adapted
from ..pipeline.findings import class_lines, classes_of, one_line
from ..pipeline.prepare import Prepared, prepare
from ..plan.schema import Plan
from ..training.loop import fine_tune
from ..training.records import FitData
from ..training.settings import FitSpec


def show(plan: Plan) -> str:
    """The plan with every automatic choice made, and what it would cost. Trains nothing that is kept.

    Raises what :func:`regraft.pipeline.prepare.prepare` raises.
    """
    p = prepare(plan)
    rows = {s: len(getattr(p.splits, s)) for s in ("train", "val", "test")}
    parts = [
        f"source  {p.source.name}   D = {p.source.features}   licence: {p.source.licence}",
        f"data    {p.plan.data.path}   "
        + "   ".join(f"{s} {n}" for s, n in rows.items())
        + f"   {p.task.name}: {p.task.outputs} outputs",
        *(f"classes {line}" for line in class_lines(classes_of(p.splits, p.task))),
        *(f"note    {n}" for n in (*p.splits.notes, *p.source.notes, *probe_note(p))),
        *(f"{f.severity:<7} {one_line(f)}" for f in p.findings if f.severity != "note"),
        "",
        block_table(p),
        "",
        *(f"{key:<18} {choice(p, key)}   {why}" for key, why in p.reasons.items()),
        "",
        cost(p),
    ]
    return "\n".join(parts)


def probe_note(p: Prepared) -> list[str]:
    """Return on how many rows λ will be chosen, where that is not all of train."""
    of, fits = len(p.splits.train), 1 if p.splits.val else max(1, len(p.folds()))
    rows = affordable(p.source.features, p.task.outputs, fits, p.plan.probe.rows)
    if p.source.nothing_kept or rows >= of:
        return []
    text = f"the linear probe's λ will be chosen on {rows:,} of {of:,} training rows (probe.rows)"
    return [f"{text}; its head then goes over all of them" if p.splits.val else text]


def choice(p: Prepared, key: str) -> str:
    section, name = key.split(".")
    return f"{getattr(getattr(p.plan, section), name)}"


def block_table(p: Prepared) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("block", "parameters", "weights", "trains from", "rate", "÷ scratch", "decay", "anchored"):
        table.add_column(title, justify="left" if title in ("block", "weights") else "right")
    for b in p.table:
        table.add_row(
            b.name,
            f"{b.parameters:,}",
            b.state,
            "frozen" if b.first_epoch is None else f"epoch {b.first_epoch}",
            f"{b.rate:.2g}",
            f"{b.over_scratch:.2g}",
            f"{b.weight_decay:.2g}",
            "yes" if b.anchored else "no",
        )
    out = StringIO()
    Console(file=out, width=120, no_color=True).print(table)
    return out.getvalue().rstrip("\n")


@freed_memory_kept()
def cost(p: Prepared) -> str:
    """Time and memory of the whole run, from two steps on one batch each."""
    size = min(p.plan.fit.batch_size, len(p.splits.train))
    some = list(range(size))
    train = p.batches("train", some, seed=p.seeds[0], train=True)
    train.reader = train.reader.alone()
    target = graft(p.source, p.task.outputs, seed=p.seeds[0])
    spec = FitSpec(p.task, p.metric, replace(p.settings, epochs=1, accumulate=1), p.freezing, seed=p.seeds[0])

    def step() -> float:
        begin = time.monotonic()
        with adapted(p.freezing, target, p.seeds[0]) as fitted:
            fine_tune(fitted, FitData(train), spec, p.compute)
        return time.monotonic() - begin

    def forward() -> float:
        begin = time.monotonic()
        outputs(target.model, train, p.compute)
        return time.monotonic() - begin

    step(), forward()  # the first of each also allocates and tunes
    training, inference = step() / size, forward() / size  # seconds a row
    n = {s: len(getattr(p.splits, s)) for s in ("train", "val", "test")}
    epochs, seeds = p.settings.epochs, len(p.seeds)
    features = (n["train"] + n["val"]) * inference
    fits = seeds * epochs * (n["train"] * training + n["val"] * inference)
    if p.plan.fit.alpha == "chosen" and p.plan.fit.start == "probe" and not p.source.nothing_kept:
        fits += seeds * len(ALPHAS) * n["val"] * inference  # the frontier
    text = f"time    features and probe {minutes(features)}, fit {minutes(fits)}"
    if not n["val"]:
        text += " and about as much for each fold of cross-validation"
    if p.scratch is not None:
        arms = p.scratch.fits(seeds, 0 if n["val"] else len(p.folds()))
        text += f", scratch at most {minutes(fits / seeds * arms * p.scratch.epochs / epochs)}"
    text += f" (one batch of {size} timed: {1e3 * training:.0f} ms a row to train, {1e3 * inference:.0f} to infer)"
    return f"{text}\nmemory  {memory(p.compute.device)}"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def memory(device: torch.device) -> str:
    """The most that this process has held so far, the timed steps included."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on {device}"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{peak / 2**30:.1f} GiB at the peak of the timed batch"
