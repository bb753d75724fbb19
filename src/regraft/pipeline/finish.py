"""The files of a run folder: what a run is made from, and what it ended with.

The model folder has weights as safetensors and all else as JSON, so that loading it runs no code:

model.safetensors   "backbone.…" and "head.…"      preprocess.json   resize, mean, tokenizer …
config.json         recipe of the architecture     labels.json       task, classes, scaling
novelty.safetensors measure of unlike inputs, where enough rows are held out; see evidence/ood.py

Beside it frontier/{start,end}.safetensors are the ends of the line that the model was chosen on. An end that is
the model itself has no file.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..compute import distributed
from ..compute.versions import __version__
from ..data.preprocessing import save_tokenizer, to_json
from ..data.splitting import write_manifest
from ..data.types import TextSpec
from ..errors import SourceError, UsageError, shorten
from ..io import guarded
from ..io.log import LOGGER
from ..model.weights import snapshot
from ..plan.write import write_plan
from ..plugins import module
from ..runs.folder import RunFolder
from ..runs.ledger import open_test
from ..runs.model_files import SCHEMA
from ..runs.result import FILE as RESULT
from ..runs.result_parts import Timing
from ..runs.side_files import Environment
from ..runs.tensors import save_tensors
from .evaluate import Trained, evaluate_all, prediction_rows
from .findings import class_lines, classes_of, one_line, records
from .gallery import write_gallery, write_suspects
from .novelty import novelty_of, save_novelty

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.types import Target
    from ..tasks import Task
    from .job import Job


class Clock:
    """Seconds by stage, of a clock that cannot jump."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.before = 0.0
        self.stages: dict[str, float] = {"features": 0.0, "probe": 0.0, "fit": 0.0}

    def add(self, stages: Mapping[str, float]) -> None:
        """Add the seconds of an earlier process."""
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
            self.before += seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - begin

    def seconds(self) -> dict[str, float]:
        return {**self.stages, "total": self.before + time.monotonic() - self.start}


def describe(job: Job, folder: RunFolder) -> None:
    """Report what is known before training, and write the files that say what the run is made from."""
    splits, notes = job.data.splits, job.notes
    for line in (*class_lines(classes_of(splits, job.data.task)), *splits.notes, *job.source.notes, *notes.source_data):
        LOGGER.info("%s", line)
    for finding in notes.findings:
        if finding.severity != "note":
            LOGGER.info("%s: %s (%s)", finding.severity, one_line(finding), shorten(finding.examples, 3))
    settled = [{"where": where, "what": what} for where, what in splits.settled]
    folder.json("check.json", {"findings": records(notes.findings), "settled": settled})
    folder.json("environment.json", environment(job).model_dump())
    folder.json("loading.json", job.target.report)
    if distributed.is_rank0():
        write_manifest(splits, folder.path / "manifest.jsonl")
    folder.text("plan.toml", write_plan(job.plan, notes.reasons))  # last: with it a run can be resumed


def environment(job: Job) -> Environment:
    """Return what results depend on beside the plan."""
    names = ("torch", "torchvision", "timm", "transformers", "numpy", "scikit-learn", "scipy", "Pillow")
    device, splits = job.compute.device, job.data.splits
    return Environment(
        regraft=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        versions={n: version(n) for n in names},
        device=str(device),
        device_name=torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
        byteorder=sys.byteorder,
        source_digest=job.source.digest,
        source_data_digest=job.source_data.all_digest if job.source_data else None,
        data_digest=splits.digest,
        test_digest=splits.test_digest,
    )


def finish(job: Job, folder: RunFolder, trained: Trained, clock: Clock) -> None:
    """Save the first seed's model, open test, and write the results."""
    arm, data = trained.arms[0], job.data
    if distributed.is_rank0():
        save_model(folder, arm.target, data.task)
    # over folds without a floor, only a run with source data evaluated the points of its own fit
    if (arm.points or (trained.fitted and trained.cross.points[1:])) and distributed.is_rank0():
        start = job.initial_target(job.source, job.seeds[0], trained.probe)
        save_ends(folder, snapshot(start), arm.end or snapshot(arm.target), arm.alpha)
    with clock("novelty"):
        graft = partial(job.initial_target, job.source, job.seeds[0])
        novelty = novelty_of(job.outputs, arm, trained.cross, graft)
    if novelty is not None and distributed.is_rank0():
        save_novelty(folder, novelty)
    with clock("evaluate"):
        where = str(folder.path.resolve())
        opened = source_opened = 0
        if distributed.is_rank0():
            opened = open_test(data.splits.test_digest, where) if trained.opened is None else trained.opened
            source_opened = open_test(job.source_data.digest, where) if job.source_data else 0
        evaluation = evaluate_all(job, trained, opened, source_opened)
    for i, rows in enumerate(evaluation.predictions):
        lines = prediction_rows(data, rows)
        name = f"predictions-{job.seeds[i]}.csv" if i else "predictions.csv"
        folder.csv(name, next(lines), lines, escape=job.plan.run.escape_csv)
    if distributed.is_rank0():
        write_gallery(folder, data.task, data.splits, evaluation.predictions[0])
    with clock("suspects"):
        write_suspects(folder, job.outputs, trained.probe)
    rest = {"resumed": folder.resumes(), "timing": Timing(clock.seconds())}
    folder.json(RESULT, evaluation.result.model_copy(update=rest).model_dump())


# ---------------------------------------------------------------- the model folder of a run


def save_model(folder: RunFolder, target: Target, task: Task) -> None:
    """Write ``model/``. The config comes last: a folder without it is no model."""
    source = target.source
    where = folder.path / "model"
    where.mkdir(exist_ok=True)  # a kill may have come in the middle of this before
    save_tensors(target.model.state_dict(), where / "model.safetensors")
    if isinstance(source.preprocess, TextSpec):
        save_tokenizer(source.preprocess, where)
    save_files = getattr(module("sources", source.recipe["source"]), "save_files", None)
    if save_files is not None:
        save_files(source, where)
    folder.json("model/preprocess.json", to_json(source.preprocess))
    folder.json("model/labels.json", task.state())
    folder.json(
        "model/config.json",
        {
            "schema": SCHEMA,
            "recipe": source.recipe,
            "features": source.features,
            "task": task.state(),
            "source": {"name": source.name, "digest": source.digest, "licence": source.licence},
        },
    )


def save_ends(folder: RunFolder, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
    """Write the ends of the frontier, so that another point can be taken without training."""
    where = folder.path / "frontier"
    where.mkdir(exist_ok=True)
    if alpha != 0:
        save_tensors(start, where / "start.safetensors")
    if alpha != 1:
        save_tensors(end, where / "end.safetensors")


def read_ends(run: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return θ(0) and θ(1) of a run, by name in the model.

    Raises UsageError where the run did not keep them, SourceError for a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    guarded.check_folder(run, "frontier")
    guarded.check_folder(run, "model")
    if not (run / "frontier").is_dir():
        raise UsageError(f"{run} did not keep the ends of its frontier: fit it again")
    found = []
    for name in ("start", "end"):
        path = run / "frontier" / f"{name}.safetensors"
        path = path if path.is_file() else run / "model" / "model.safetensors"
        try:
            found.append(load_file(path))
        except (OSError, SafetensorError) as error:
            raise SourceError(f"{path} cannot be read: {error}") from error
    start, end = found
    return start, end
