"""A run loaded for predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..compute.arrays import Kind
from ..compute.device import Compute
from ..compute.malloc import freed_memory_kept
from ..data.batches import Batches, LabelledRows
from ..data.columns import cells_of
from ..data.decoding import vet
from ..data.loading import rows_of
from ..data.ordering import EpochOrder
from ..data.preprocessing import Preprocessor, build
from ..data.readers import make_reader
from ..data.slices import check_columns, read_values
from ..data.splitting import read_manifest
from ..data.types import DataOptions, Example, content_of
from ..errors import DataError, UsageError
from ..evidence.abstention import accepts
from ..evidence.conformal import bounds, members
from ..evidence.scoring import Predictions, estimates, score
from ..evidence.slices import slice_rows
from ..evidence.types import Prediction
from ..io import guarded
from ..model.forward import outputs
from ..model.grafting import Model
from ..model.types import SourceOptions
from ..plan import read as plan_read
from ..plan.schema import Plan
from ..plugins import module
from ..runs import records
from ..runs.estimates import Estimate
from ..runs.folder import is_run, read_task
from ..runs.guarantees import SetRule, Threshold
from ..runs.result import FILE as RESULT
from ..runs.result import Calibrated
from ..sources import load_source
from ..tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from ..runs.slices import Slices

NO_TEMPERATURE = "this run fitted no temperature: it takes a classification task, and rows for val or for folds"

NO_SETS = (
    "this run has none: they take one class a row, or numbers, and evaluate.coverage; an older run needs a new fit"
)

MANIFEST = "manifest.jsonl"

BATCH = 32  # rows at once of what is only judged


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a run on new labelled data."""

    metrics: dict[str, Estimate]
    rows: Predictions  # that the metrics are of
    which: str  # "test rows" of the data, or "all rows"
    slices: Slices | None  # the same by the values of columns; None: no column was named
    own: dict[str, int]  # rows that the run has already, by its split; those of train and val are left out


def splits_of_run(run: Path) -> dict[str, str]:
    """Return the split of a run's rows by their content; {} where the folder has no manifest.

    Content that is in several splits counts as train, or else as val.
    """
    if not (run / MANIFEST).is_file():
        return {}
    splits: dict[str, str] = {}
    for row in read_manifest(run / MANIFEST):
        content = content_of(row.id)
        if row.split == "train" or splits.get(content) in (None, "test"):
            splits[content] = row.split
    return splits


@dataclass(frozen=True)
class Predictor:
    """A run's model, ready for new inputs."""

    model: nn.Module
    task: Task
    preprocessor: Preprocessor
    kind: Kind  # "image", "text" or "tensor"
    device: torch.device
    temperature: float | None = None  # that the run fitted; None: none, or one that test speaks against
    uncalibrated: str = NO_TEMPERATURE  # why there is no temperature
    run: Path | None = None  # the run's folder
    rule: SetRule | None = None  # of sets or intervals; None: the run has none
    without_sets: str = NO_SETS  # why there is no rule
    threshold: Threshold | None = None  # of the rows that are accepted; None: the run proved none
    divided_by: float = 1.0  # temperature that the logits are divided by

    @property
    def has_sets(self) -> bool:
        """Return whether predictions may have sets, intervals or ``accepted``."""
        return self.rule is not None or self.threshold is not None

    def calibrated(self) -> Predictor:
        """Return the same model with logits divided by the run's temperature.

        The answers stay the same; the probabilities match how often the model is right. Raises UsageError for a
        run without a temperature, and for one whose temperature made the log loss on test worse.
        """
        if self.temperature is None:
            raise UsageError(f"calibrated probabilities: {self.uncalibrated}")
        head = copy.deepcopy(self.model.get_submodule("head"))
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.div_(self.temperature)
        model = Model(self.model.get_submodule("backbone"), head).eval()
        return replace(self, model=model, temperature=1.0, divided_by=self.divided_by * self.temperature)

    def predict(self, inputs: Sequence[str | Path | tuple[str, str]], *, sets: bool = False) -> list[Prediction]:
        """Return a prediction for each picture by path, text or pair of texts, in their order.

        With ``sets`` each has its set of classes, or the intervals of its numbers. If the run has a threshold, each
        also says whether it is accepted.

        Raises DataError for a picture that cannot be read, and UsageError for sets of a run that has none.
        """
        if sets and not self.has_sets:
            raise UsageError(f"sets: {self.without_sets}")
        examples = [Example(str(i), x if isinstance(x, tuple) else (str(x),), (), str(x)) for i, x in enumerate(inputs)]
        if not examples:
            return []
        if self.kind == "image":
            vet(e.inputs[0] for e in examples)
        # a single batch would only hand its memory back more slowly
        with freed_memory_kept() if len(examples) > BATCH else nullcontext():
            rows = self.task.scores(outputs(self.model, self.batches(examples), self.compute).values).numpy()
        return [self.as_prediction(row, sets=sets) for row in rows]

    @property
    def compute(self) -> Compute:
        """Return the device, with float32."""
        return Compute(self.device)

    def batches(self, examples: Sequence[Example], targets: torch.Tensor | None = None) -> Batches:
        """Return batches of rows, as evaluation sees them; without targets these are zeros."""
        rows = LabelledRows(examples, torch.zeros(len(examples)) if targets is None else targets)
        return Batches(rows, make_reader(self.preprocessor, examples), EpochOrder(BATCH), self.compute)

    def as_prediction(self, row: Any, *, sets: bool = False) -> Prediction:
        """Return the prediction of a row's scores [C]; with ``sets`` all that the run has of the kind."""
        scores = {c: float(v) for c, v in zip(self.task.classes, row, strict=True)}
        label = self.task.label(row)
        found = Prediction(label, scores.get(label) if self.task.has_classes else None, scores)
        if not sets:
            return found
        if self.threshold is not None:
            found = replace(found, accepted=bool(accepts(self.threshold, row[None], self.divided_by)[0]))
        if self.rule is None:
            return found
        if self.rule.half_widths is not None:
            ends = zip(*(end.tolist() for end in bounds(self.rule, row)), strict=True)
            return replace(found, intervals=dict(zip(self.task.classes, ends, strict=True)))
        inside = members(self.rule, row[None], self.divided_by)[0]
        order = np.argsort(-row, kind="stable")
        return replace(found, classes=tuple(self.task.classes[i] for i in order if inside[i]))

    @freed_memory_kept()
    def evaluate(self, data: DataOptions, slices: Sequence[str] = ()) -> Evaluation:
        """Return metrics with intervals on new labelled data, and by the values of the columns ``slices``.

        Rows of the run's own train and val are counted and left out: the model was fitted or chosen on them. Raises
        DataError for labels that the run does not know, for columns that cannot be sliced by, and where no row is new.
        """
        check_columns(data.for_task(self.task), slices)
        examples, which = rows_of(data, self.task, self.kind)
        splits = {} if self.run is None else splits_of_run(self.run)
        known = [splits.get(content_of(id_)) for id_ in examples.ids()]
        new = [i for i, split in enumerate(known) if split not in ("train", "val")]
        own: dict[str, int] = {split: known.count(split) for split in ("train", "val", "test") if split in known}
        if not new:
            counts = ", ".join(f"{split} {n}" for split, n in own.items())
            raise DataError(
                f"all {len(examples)} of the {which} of {data.path} are the run's own ({counts}): figures on them say "
                f"nothing about new data; give rows that {self.run} was not fitted on"
            )
        examples = examples.take(new)
        values = read_values(data.for_task(self.task), slices, examples, which)
        targets = self.task.encode(cells_of(examples))
        rows = score(outputs(self.model, self.batches(examples, targets), self.compute), self.task, examples)
        metrics = {name: module("metrics", name) for name in self.task.metrics}
        by_value = slice_rows(self.task, metrics, rows, values) if values else None
        return Evaluation(estimates(self.task, metrics, rows), rows, which, by_value, own)


def load(run: str | Path, *, device: str = "cpu") -> Predictor:
    """Load a run's model: weights and JSON only. No code of the plan runs.

    Raises SourceError or UsageError for a folder that is no run or a damaged one.
    """
    folder = Path(run)
    guarded.check_folder(folder, "model")  # libraries open its files by their paths
    if not is_run(folder):
        raise UsageError(f"{run} holds no model: give the folder of a finished run")
    source = load_source(str(folder), SourceOptions(offline=True))
    task = read_task(folder)
    if source.head is None:
        raise UsageError(f"{run} holds no head: its model folder is damaged")
    model = Model(source.backbone, source.head).eval().to(device)
    # a model folder alone is enough to predict with
    result = records.read(folder, RESULT, Calibrated)
    fitted = result.calibration if result else None
    refusal = fitted.refusal if fitted else ""
    temperature = fitted.temperature if fitted and not refusal else None
    outputs_of_head = getattr(source.head, "out_features", task.outputs)
    if task.outputs != outputs_of_head:
        why = f"{task.outputs} classes for {outputs_of_head} outputs"
        raise guarded.damaged(folder, "model/labels.json", why)
    rule = result.sets if result else None
    threshold = result.abstention if result else None
    check_rule(folder, rule, task)
    if threshold and threshold.threshold is not None and not task.calibrates:
        raise guarded.damaged(folder, RESULT, f"abstention is not of {task.name}")
    return Predictor(
        model,
        task,
        build(source.preprocess),
        source.kind,
        torch.device(device),
        temperature,
        refusal or NO_TEMPERATURE,
        folder,
        rule if rule and rule.exists else None,
        (rule.refusal if rule else "") or NO_SETS,
        threshold if threshold and threshold.threshold is not None else None,
    )


def check_rule(folder: Path, rule: SetRule | None, task: Task) -> None:
    """Raise NotReadError for a rule of sets that is not of this task."""
    if rule is None or not rule.exists:
        return
    widths = rule.half_widths
    if not (task.calibrates if widths is None else task.has_numbers and len(widths) == task.outputs):
        raise guarded.damaged(folder, RESULT, f"sets are not of {task.outputs} outputs of {task.name}")


def plan_of(run: str | Path) -> Plan:
    """Return the plan that a run was made from. Code that it names does not run."""
    return plan_read.read_run_plan(Path(run))
