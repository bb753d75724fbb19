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
from .arms import Arm, Say, Track, cross_validate, fit_arm, fit_scratch
from .controls import untrained
from .data import write_manifest
from .errors import UsageError
from .features import outputs
from .frontier import Point, choose
from .linear_probe import fit_probe
from .loop import Epoch
from .plan import Plan, write_plan
from .prepare import Prepared, prepare
from .results import Trained, evaluate_all, prediction_rows
from .runfiles import SCHEMA, RunFolder, check_new, open_test
from .save import save_model
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

        for note in (*p.splits.notes, *p.source.notes):
            tell(note)
        folder.text("plan.toml", write_plan(p.plan, p.reasons))
        folder.json("environment.json", environment(p))
        folder.json("loading.json", p.target.report)
        write_manifest(p.splits, folder.path / "manifest.jsonl")
        trained = train(p, folder, tell, track, clock)
        save_model(folder, trained.arms[0].target, p.task)
        with clock("evaluate"):
            opened = open_test(p.splits.test_digest, str(folder.path.resolve()))
            judged = evaluate_all(p, trained, opened)
        header, *lines = prediction_rows(p, judged.predictions)
        folder.csv("predictions.csv", header, lines)
        result = {
            "schema": SCHEMA,
            **judged.result,
            "timing": clock.seconds(),
            "status": "finished",
        }
        folder.json("result.json", result)
    return folder.path


def train(p: Prepared, folder: RunFolder, say: Say, track: Track | None, clock: Clock) -> Trained:
    """Probe, then a fit a seed, then the scratch control."""
    probe, start, cross, chosen = None, None, list[Point](), p.settings
    alpha = None if p.plan.fit.alpha == "chosen" else p.plan.fit.alpha
    if not p.source.nothing_kept:
        with clock("features"):
            backbone = p.source.backbone.to(p.device)
            features = {
                split: outputs(backbone, p.batches(split), p.device, p.settings.layout)
                for split in ("train", "val")
                if split in p.targets
            }
        with clock("probe"):
            probe = fit_probe(
                features["train"], p.task, p.plan.probe.strengths,
                val=features.get("val"), folds=p.folds(),
            )  # fmt: skip
        say(f"linear probe: λ = {probe.strength:g}, chosen by {probe.chosen_by}")
        start = probe if p.plan.fit.start == "probe" else None
    if start is not None and not p.splits.val and p.folds():
        with clock("cross-validation"):
            cross = cross_validate(p, p.source, chosen, features["train"])
        alpha = choose(cross, p.metric).alpha if alpha is None else alpha
        say(f"frontier: α = {alpha:g}, by cross-validation")
        if alpha == 0:
            say("nowhere on it does fine-tuning beat the probe, so the probe stands")
            chosen = replace(chosen, epochs=0)

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
            start=start, alpha=alpha, log=log, track=track, label=f"seed {seed}",
        )  # fmt: skip
        if arm.points:
            say(f"seed {seed}   frontier: α = {arm.alpha:g}, by val")
        return arm

    with clock("fit"):
        arms = [fitted(seed) for seed in p.seeds]
    with clock("scratch"):
        scratch = fit_scratch(p, say, track) if p.scratch is not None else []
    return Trained(arms, scratch, probe, cross, fitted=chosen.epochs > 0)


def in_words(epoch: Epoch, epochs: int, seed: int) -> str:
    """One plain line an epoch."""
    val = "   ".join(f"val {k} {v:.4f}" for k, v in epoch.val.items())
    terms = "   ".join(f"{k} {v:.4f}" for k, v in epoch.terms.items())
    best = " *" if epoch.best and epoch.val else ""
    return (
        "   ".join(s for s in (f"seed {seed}   epoch {epoch.epoch}/{epochs}", terms, val) if s)
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
