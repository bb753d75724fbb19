"""Builders that tests share: rows, sources, tasks, batches, fit specifications, words of a command line, results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regraft.compute.device import Compute
from regraft.data.batches import Batches, LabelledRows
from regraft.data.ordering import EpochOrder
from regraft.data.preprocessing import Preprocessor, build
from regraft.data.readers import make_reader
from regraft.data.types import Augment, CallableSpec, Example, ImageSpec, Preprocess, TextSpec
from regraft.freezing.everything import Everything
from regraft.metrics import accuracy
from regraft.model.types import Source, Target
from regraft.tasks import Task
from regraft.tasks.classification import Classification
from regraft.training.loop import fine_tune
from regraft.training.records import NONE, SILENT, Checkpoints, Epoch, FitData, FitResult, Monitor, Progress, Saved
from regraft.training.settings import FitSpec, Settings

CPU = Compute()

NO_AUGMENT = Augment(random_resized_crop=False, flip=False)


def read_floats(row: tuple[str, ...]) -> torch.Tensor:
    """Return the numbers that a row spells, as a tensor."""
    return torch.tensor([float(value) for value in row[0].split()])


FLOATS = CallableSpec(read_floats)

LARGEST_CLASSES, LARGEST_SIDE = 3, 8


class LargestNet(nn.Module):
    """A small network for the rows of ``write_largest``."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Linear(LARGEST_SIDE, 16), nn.Tanh())
        self.head = nn.Linear(16, LARGEST_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.low(x))
        return logits


def largest_source() -> Source:
    """Return a source of random weights, drawn with seed 0, for the rows of ``write_largest``."""
    torch.manual_seed(0)
    return Source.from_module(
        LargestNet(),
        head="head",
        preprocess=CallableSpec(read_floats, kind="text"),
        example=torch.zeros(2, LARGEST_SIDE),
        name="net",
    )


def write_largest(file: Path, n: int) -> None:
    """Write rows of eight numbers, drawn with seed n, whose class is the largest of the first three."""
    x = np.random.default_rng(n).normal(size=(n, LARGEST_SIDE)).round(3)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        writer.writerows([" ".join(map(str, r)), f"c{r[:LARGEST_CLASSES].argmax()}"] for r in x)


def spell_rows(x: torch.Tensor, classes: Sequence[str], prefix: str = "r") -> list[Example]:
    """Return an example for each row of numbers [N, D], which ``read_floats`` reads again."""
    return [
        Example(f"{prefix}{i:04d}-0", (" ".join(map(repr, row)),), (classes[i],), f"row {i}")
        for i, row in enumerate(x.tolist())
    ]


def class_task(*names: str) -> Task:
    """Return a classification task of these classes."""
    return Classification().make([(name,) for name in names], ("label",))


def make_batches(
    examples: Sequence[Example],
    targets: torch.Tensor,
    preprocess: Preprocess | Preprocessor,
    batch_size: int,
    *,
    seed: int = 0,
    strata: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
    compute: Compute = CPU,
    **reader: Any,
) -> Batches:
    """Return batches of rows; ``reader`` are the options of ``make_reader``."""
    if isinstance(preprocess, ImageSpec | TextSpec | CallableSpec):
        preprocess = build(preprocess)
    rows, order = LabelledRows(examples, targets), EpochOrder(batch_size, seed, strata, share)
    return Batches(rows, make_reader(preprocess, examples, **reader), order, compute)


def make_settings(blocks: Sequence[str], epochs: int = 2, rate: float = 0.01, **change: Any) -> Settings:
    """Return settings with one rate for all blocks, without augmentation."""
    return Settings(**{"epochs": epochs, "rates": dict.fromkeys(blocks, rate), "augment": NO_AUGMENT} | change)


def make_spec(settings: Settings, task: Task, **change: Any) -> FitSpec:
    """Return a fit of everything by accuracy, without penalties, with seed 0."""
    return FitSpec(**{"task": task, "metric": accuracy, "settings": settings, "freezing": Everything()} | change)


@dataclass
class Recorder(Monitor):
    """A monitor that keeps what a fit reports."""

    epochs: list[Epoch] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    on_step: Callable[[Progress], None] = lambda progress: None

    def epoch(self, epoch: Epoch) -> None:
        """Keep the figures of an epoch."""
        self.epochs.append(epoch)

    def step(self, progress: Progress) -> None:
        """Call ``on_step``."""
        self.on_step(progress)

    def source_metrics(self) -> dict[str, float]:
        """Measure nothing."""
        return {}

    def note(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line)


@dataclass
class CheckpointStub(Checkpoints):
    """Checkpoints that start from ``saved`` and hand what is to be saved to ``on_save``."""

    saved: Saved | None = None
    on_save: Callable[[Progress, Callable[[], dict[str, torch.Tensor]]], None] = lambda progress, tensors: None

    def load(self) -> Saved | None:
        """Return ``saved``."""
        return self.saved

    def save(self, progress: Progress, tensors: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Call ``on_save``."""
        self.on_save(progress, tensors)


def fit(
    target: Target,
    train: Batches,
    task: Task,
    settings: Settings,
    *,
    val: Batches | None = None,
    compute: Compute = CPU,
    monitor: Monitor = SILENT,
    checkpoints: Checkpoints = NONE,
    **spec: Any,
) -> FitResult:
    """Fine-tune a target; ``spec`` may change the metric, the freezing, the penalties and the seed."""
    data = FitData(train, val)
    return fine_tune(target, data, make_spec(settings, task, **spec), compute, monitor=monitor, checkpoints=checkpoints)


# ---------------------------------------------------------------- whole runs


def tiny_source(weights: Path) -> list[object]:
    """Return the words of a command line for timm's test_resnet with these weights, at 32 pixels."""
    return ["--source", "timm:test_resnet", "--weights", weights, "--set", "source.image_size=32"]


def read_result(run: Path) -> Any:
    """Return a run's result.json as it stands there."""
    return json.loads((run / "result.json").read_text(encoding="utf-8"))
