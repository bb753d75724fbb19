"""The pipeline: plan → data, source → graft → probe → fit → evaluate → run folder.

The only file that knows all the others, with :mod:`regraft.prepare` and :mod:`regraft.arms`, which
are its first and second half.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .arms import (
    Arm,
    Folded,
    Say,
    Track,
    begin,
    cross_validate,
    features_of_source,
    fit_arm,
    fit_scratch,
    probe_on,
)  # fmt: skip
from .controls import untrained
from .data import write_manifest
from .errors import PlanError, UsageError, shorten
from .evaluation import Scored
from .findings import one_line, records
from .frontier import Point, choose
from .gallery import write_gallery
from .loop import Epoch, snapshot
from .plan import Plan, write_plan
from .prepare import Prepared, prepare
from .results import Trained, evaluate_all, prediction_rows
from .retention import retained
from .runfiles import SCHEMA, RunFolder, check_new, open_test
from .save import save_ends, save_model
from .source_data import Part
from .types import Source


def run(
    plan: Plan,
    *,
    allow_code: bool = False,
    say: Say = lambda line: None,
    track: Track | None = None,
    source: Source | None = None,
) -> Path:
    """Data and source → a finished run folder, whose path is returned.

    ``source`` stands in for the plan's reference where it is a module of one's own.

    Raises any RegraftError. Before training nothing is written; a folder that was already made then
    says in its result.json that the run failed, and why.
    """
    if plan.run.out is None:
        raise UsageError("say where the run goes: --out runs/NAME")
    check_new(Path(plan.run.out))
    clock = Clock()
    with clock("prepare"):
        p = prepare(plan, allow_code=allow_code, source=source)
    with RunFolder(Path(plan.run.out)) as folder:

        def tell(line: str) -> None:
            folder.log(line)
            say(line)

        describe(p, folder, tell)
        trained = train(p, folder, tell, track, clock)
        finish(p, folder, trained, clock)
    return folder.path


def describe(p: Prepared, folder: RunFolder, say: Say) -> None:
    """What is known before training: notes, and the files that say what the run is made from."""
    for note in (*p.splits.notes, *p.source.notes, *p.source_notes):
        say(note)
    for finding in p.findings:
        if finding.severity != "note":
            say(f"{finding.severity}: {one_line(finding)} ({shorten(finding.examples, 3)})")
    settled = [{"where": where, "what": what} for where, what in p.splits.settled]
    folder.json("check.json", {"findings": records(p.findings), "settled": settled})
    folder.text("plan.toml", write_plan(p.plan, p.reasons))
    folder.json("environment.json", environment(p))
    folder.json("loading.json", p.target.report)
    write_manifest(p.splits, folder.path / "manifest.jsonl")


def finish(p: Prepared, folder: RunFolder, trained: Trained, clock: Clock) -> None:
    """Save the first seed's model, open test, and write what was found."""
    arm = trained.arms[0]
    save_model(folder, arm.target, p.task)
    if arm.points:
        start = begin(p, p.source, p.seeds[0], trained.probe)
        save_ends(folder, snapshot(start), arm.end or snapshot(arm.target), arm.alpha)
    with clock("evaluate"):
        where = str(folder.path.resolve())
        opened = open_test(p.splits.test_digest, where)
        source_opened = open_test(p.source_data.digest, where) if p.source_data else 0
        judged = evaluate_all(p, trained, opened, source_opened)
    header, *lines = prediction_rows(p, judged.predictions)
    folder.csv("predictions.csv", header, lines)
    write_gallery(folder, p.task, p.splits, judged.predictions)
    result = {
        "schema": SCHEMA,
        **judged.result,
        "timing": clock.seconds(),
        "status": "finished",
    }
    folder.json("result.json", result)


def train(p: Prepared, folder: RunFolder, say: Say, track: Track | None, clock: Clock) -> Trained:
    """Probe, then a fit a seed, then the scratch control."""
    probe, start, cross, chosen = None, None, Folded([], 0, {}), p.settings
    alpha = None if p.plan.fit.alpha == "chosen" else p.plan.fit.alpha
    if not p.source.nothing_kept:
        with clock("features"):
            features = features_of_source(p, say)
        with clock("probe"):
            probe = probe_on(p, features)
        say(f"linear probe: λ = {probe.strength:g}, chosen by {probe.chosen_by}")
        start = probe if p.plan.fit.start == "probe" else None
    walks = start is not None and alpha is None
    select = source_before(p, "select") if walks or p.plan.source_data.each_epoch else None
    if not p.splits.val and p.folds() and (start is not None or p.plan.data.folds):
        with clock("cross-validation"):
            cross = cross_validate(p, p.source, chosen, features["train"] if start else None)
    if start is not None and cross.points:
        best = choose(cross.points, p.metric).alpha if alpha is None else alpha
        if best == 0:
            say("by cross-validation fine-tuning nowhere beats the probe, so the probe stands")
            chosen = replace(chosen, epochs=0)
        if p.plan.fit.retain is None or best == 0:
            alpha = best
            say(f"frontier: α = {alpha:g}, by cross-validation")

    def fitted(seed: int) -> Arm:
        def log(epoch: Epoch) -> None:
            folder.append("history.jsonl", {"seed": seed, **asdict(epoch)})
            folder.log(in_words(epoch, chosen.epochs, seed))
            if track is None:
                say(in_words(epoch, chosen.epochs, seed))

        source = p.source  # a random one is drawn anew for every seed
        if source.nothing_kept:
            source = replace(untrained(source, seed), name=source.name)
        arm = fit_arm(
            p, source, chosen, seed,
            start=start, alpha=alpha, select=select, points=cross.points, log=log, track=track, label=f"seed {seed}",
            say=say,
        )  # fmt: skip
        if alpha is None and arm.points:
            by = "val" if p.splits.val else "cross-validation"
            say(f"seed {seed}   frontier: α = {arm.alpha:g}, by {by}{floor(p)}")
        return arm

    with clock("fit"):
        arms = [fitted(seed) for seed in p.seeds]
    with clock("scratch"):
        scratch = fit_scratch(p, say, track) if p.scratch is not None else []
    return Trained(arms, scratch, probe, cross, fitted=chosen.epochs > 0)


def source_before(p: Prepared, part: Part) -> Scored | None:
    """What the source itself says of a part of its data.

    Raises PlanError where the floor is out of reach: even unchanged weights do not prove it.
    """
    data, retain = p.source_data, p.plan.fit.retain
    if data is None:
        return None
    if retain is not None and not p.splits.val and not p.folds():
        text = "fit.retain: too few rows for val or folds, so nothing to choose α by: remove it"
        raise PlanError([text])
    rows = data.scored(p.source.backbone, part)
    if retain is not None:
        choose([Point(0.0, {}, retained(data.metric, rows, rows))], p.metric, retain)
    return rows


def floor(p: Prepared) -> str:
    return "" if p.plan.fit.retain is None else f", keeping {p.plan.fit.retain:g} of the source"


def in_words(epoch: Epoch, epochs: int, seed: int) -> str:
    """One plain line an epoch."""
    val = "   ".join(f"val {k} {v:.4f}" for k, v in epoch.val.items())
    terms = "   ".join(f"{k} {v:.4f}" for k, v in epoch.terms.items())
    source = "   ".join(f"source {k} {v:.4f}" for k, v in epoch.source.items())
    best = " *" if epoch.best and epoch.val else ""
    return (
        "   ".join(
            s for s in (f"seed {seed}   epoch {epoch.epoch}/{epochs}", terms, val, source) if s
        )
        + best
    )


class Clock:
    """Seconds by stage, of a clock that cannot jump."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.stages: dict[str, float] = {"features": 0.0, "probe": 0.0, "fit": 0.0}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - begin

    def seconds(self) -> dict[str, float]:
        return {**self.stages, "total": time.monotonic() - self.start}


def environment(p: Prepared) -> dict[str, Any]:
    """What results depend on beside the plan."""
    names = (
        "torch",
        "torchvision",
        "timm",
        "transformers",
        "numpy",
        "scikit-learn",
        "scipy",
        "Pillow",
    )
    return {
        "regraft": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {n: version(n) for n in names},
        "device": str(p.device),
        "device_name": torch.cuda.get_device_name()
        if p.device.type == "cuda"
        else platform.machine(),
        "threads": torch.get_num_threads(),
        "byteorder": sys.byteorder,
        "data_digest": p.splits.digest,
        "test_digest": p.splits.test_digest,
    }
