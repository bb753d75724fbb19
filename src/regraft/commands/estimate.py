"""The text of ``regraft plan``: the table of blocks, and time and memory from one timed batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import psutil
import torch

from ..compute.malloc import freed_memory_kept
from ..evidence.frontier import ALPHAS
from ..evidence.linear_probe import affordable
from ..evidence.looks import FIRST_LOOK, MOST_SEEDS
from ..evidence.power import Control, before_run
from ..model.forward import outputs
from ..model.grafting import graft
from ..model.types import Source
from ..pipeline.arms import adapted
from ..pipeline.findings import class_lines, classes_of, one_line
from ..pipeline.job import Job
from ..pipeline.prepare import prepare
from ..pipeline.target_data import TargetData
from ..plan.schema import Plan, ProbePlan, ResolvedPlan
from ..runs.result_parts import Block
from ..training.loop import fine_tune
from ..training.records import FitData


def show(plan: Plan) -> str:
    """Return the plan with every automatic choice made, and its cost. Keep nothing that is trained.

    Raises what :func:`regraft.pipeline.prepare.prepare` raises.
    """
    job = prepare(plan)
    splits, notes = job.data.splits, job.notes
    rows = {s: len(job.data.rows(s)) for s in ("train", "val", "test")}
    parts = [
        f"source  {job.source.name}   D = {job.source.features}   licence: {job.source.licence}",
        f"data    {job.plan.data.path}   "
        + "   ".join(f"{s} {n}" for s, n in rows.items())
        + f"   {job.data.task.name}: {job.data.task.outputs} outputs",
        *(f"classes {line}" for line in class_lines(classes_of(splits, job.data.task))),
        *(
            f"note    {n}"
            for n in (*splits.notes, *job.source.notes, *probe_note(job.data, job.source, job.plan.probe))
        ),
        *(f"{f.severity:<7} {one_line(f)}" for f in notes.findings if f.severity != "note"),
        "",
        block_table(notes.blocks),
        "",
        *(f"{key:<18} {choice(job.plan, key)}   {why}" for key, why in notes.reasons.items()),
        "",
        cost(job),
        *power_line(job.data, job.source, job.plan),
    ]
    return "\n".join(parts)


def power_line(data: TargetData, source: Source, plan: ResolvedPlan) -> list[str]:
    """Return what the test rows and seeds of the run can show of transfer; nothing where nothing is kept."""
    if source.nothing_kept:
        return []
    control: Control = "scratch" if "scratch" in plan.evaluate.controls else "linear probe"
    text = before_run(data.splits.test, data.task, plan.run.seeds, control)
    return [] if text is None else [f"power   {text}"]


def probe_note(data: TargetData, source: Source, plan: ProbePlan) -> list[str]:
    """Return on how many rows λ will be chosen, where that is not all of train."""
    of, fits = len(data.splits.train), 1 if data.splits.val else max(1, len(data.folds()))
    rows = affordable(source.features, data.task.outputs, fits, plan.rows)
    if source.nothing_kept or rows >= of:
        return []
    text = f"the linear probe's λ will be chosen on {rows:,} of {of:,} training rows (probe.rows)"
    return [f"{text}; its head then goes over all of them" if data.splits.val else text]


def choice(plan: ResolvedPlan, key: str) -> str:
    """Return the value of a dotted key."""
    section, name = key.split(".")
    return f"{getattr(getattr(plan, section), name)}"


def block_table(rows: Sequence[Block]) -> str:
    """Return the table of blocks."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("block", "parameters", "weights", "trains from", "rate", "÷ scratch", "decay", "anchored"):
        table.add_column(title, justify="left" if title in ("block", "weights") else "right")
    for b in rows:
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
def cost(job: Job) -> str:
    """Return time and memory of the whole run, from two steps on one batch each."""
    data, settings = job.data, job.spec.settings
    size = min(job.plan.fit.batch_size, len(data.splits.train))
    train = data.batches("train", list(range(size)), seed=job.seeds[0], train=True)
    train.reader = train.reader.alone()
    target = graft(job.source, data.task.outputs, seed=job.seeds[0])
    spec = replace(job.spec, settings=replace(settings, epochs=1, accumulate=1))

    def step() -> float:
        begin = time.monotonic()
        with adapted(spec.freezing, target, job.seeds[0]) as fitted:
            fine_tune(fitted, FitData(train), spec, job.compute)
        return time.monotonic() - begin

    def forward() -> float:
        begin = time.monotonic()
        outputs(target.model, train, job.compute)
        return time.monotonic() - begin

    step(), forward()  # the first of each also allocates and tunes
    training, inference = step() / size, forward() / size  # seconds a row
    n, epochs = {s: len(data.rows(s)) for s in ("train", "val", "test")}, settings.epochs
    features = (n["train"] + n["val"]) * inference
    fit = epochs * (n["train"] * training + n["val"] * inference)  # of a seed
    if job.plan.fit.alpha == "chosen" and job.plan.fit.start != "random" and not job.source.nothing_kept:
        fit += len(ALPHAS) * n["val"] * inference  # the frontier
    average = not n["val"] and job.plan.fit.after_folds == "average" and bool(data.folds())
    fit *= len(data.folds()) - 1 if average else 1
    counts = (FIRST_LOOK, MOST_SEEDS) if job.looks else (len(job.seeds),)

    def times(seconds: Sequence[float]) -> str:
        """Return a time for each number of seeds, which is told where there are several."""
        named = (f" ({seeds} seeds)" if job.looks else "" for seeds in counts)
        return " to ".join(f"{minutes(s)}{name}" for s, name in zip(seconds, named, strict=True))

    text = f"time    features and probe {minutes(features)}, fit {times([fit * seeds for seeds in counts])}"
    if average:
        text += f" in {len(data.folds())} folds"
    elif not n["val"]:
        text += " and about as much for each fold of cross-validation"
    if job.scratch is not None:
        folds, each = 0 if n["val"] else len(data.folds()), fit * job.scratch.epochs / epochs
        text += f", scratch at most {times([each * job.scratch.fits(seeds, folds) for seeds in counts])}"
    text += f" (one batch of {size} timed: {1e3 * training:.0f} ms a row to train, {1e3 * inference:.0f} to infer)"
    return f"{text}\nmemory  {memory(job.compute.device)}"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def memory(device: torch.device) -> str:
    """Return the peak memory of this process so far, with the timed steps."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on {device}"
    return f"{peak_bytes() / 2**30:.1f} GiB at the peak of the timed batch"


def peak_bytes() -> int:
    """Return the most memory that this process has had, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss: macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
