"""regraft from Python: one call for the whole job, and the pieces it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import guarded, records
from . import plan as plans
from .batches import Batches
from .checking import check as looked
from .columns import cells_of
from .data import rows_of
from .decoding import vet
from .errors import UsageError
from .evaluation import Scored, estimates, scored
from .features import outputs
from .findings import Checked
from .grafting import Model
from .heap import freed_memory_kept
from .plan import Plan, place
from .plugins import module
from .preprocess import Preprocessor, build
from .records import estimate_of
from .run import run as run_plan
from .runfiles import finished, is_run, read_task
from .sources import load_source
from .summary import summary
from .types import (
    DataOptions,
    Estimate,
    Example,
    Kind,
    Prediction,
    Source,
    SourceOptions,
    Task,
    Verdict,
)

if TYPE_CHECKING:
    from torch import nn

    from .exporting import Exported

BATCH = 32  # rows at once of what is only judged


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and what its result.json says."""

    path: Path
    result: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Raises UsageError for a folder that is no finished run."""
        return cls(Path(path), finished(Path(path)))

    @property
    def test(self) -> dict[str, Estimate]:
        return self._estimates("test")

    @property
    def val(self) -> dict[str, Estimate]:
        return self._estimates("val")

    @property
    def gain(self) -> dict[str, Estimate]:
        """Over each control, on the primary metric, paired; positive is better."""
        return self._estimates("gain")

    def _estimates(self, of: str) -> dict[str, Estimate]:
        return {k: estimate_of(v) for k, v in self.result.get(of, {}).items()}

    @property
    def verdict(self) -> Verdict:
        v = self.result["verdict"]
        gain = estimate_of(v["gain"]) if v["gain"] else None
        return Verdict(v["words"], gain, v.get("seeds", 0), v["why"])

    def report(self, out: str | Path | None = None) -> Path:
        """Write the run's report, one HTML file, in its folder or at ``out``; → its path."""
        from .report.render import report

        return report([self.path], None if out is None else Path(out))

    def export(self, to: str, out: str | Path | None = None, **how: Any) -> Exported:
        """The model for other programs; see :func:`regraft.exporting.export`."""
        from .exporting import export

        return export(self.path, to, out, **how)

    def __str__(self) -> str:
        return summary(self.path, self.result)


def fit(
    data: str | Path,
    *,
    source: str | Source,
    out: str | Path,
    settings: dict[str, Any] | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
    resume: bool = False,
    accept_changes: bool = False,
    **sections: Any,
) -> Run:
    """Fine-tune ``source`` on ``data`` and write the run folder ``out``.

    ``settings`` has dotted keys ("fit.epochs": 3); keyword arguments are whole sections
    (``fit={"epochs": 3}``, ``task={"name": "regression"}``). ``resume`` goes on with a run that was
    left, bit for bit; changed data or plan are refused, or recorded with ``accept_changes``.

    Raises PlanError, DataError, SourceError, DivergedError or DiskError.
    """
    named = {"run.out": str(out)}
    plan = as_plan(data, source, named | (settings or {}), sections, allow_code)
    given = source if isinstance(source, Source) else None
    path = run_plan(
        plan, allow_code=allow_code, say=say, source=given, resume=resume,
        accept_changes=accept_changes,
    )  # fmt: skip
    return Run.read(path)


def check(
    data: str | Path,
    *,
    source: str | Source = "",
    settings: dict[str, Any] | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **sections: Any,
) -> Checked:
    """Look at data, and at what ``source`` makes of them, without training: a list of findings.

    ``settings`` and keyword arguments are those of ``fit``; source data go in as
    ``source_data={"path": …}``.

    Raises DataError where the data do not read at all, PlanError or SourceError as ``fit`` does.
    """
    plan = as_plan(data, source, settings or {}, sections, allow_code)
    given = source if isinstance(source, Source) else None
    return looked(plan, allow_code=allow_code, say=say, source=given)


def as_plan(
    data: str | Path,
    source: str | Source,
    settings: dict[str, Any],
    sections: dict[str, Any],
    allow_code: bool,
) -> Plan:
    """The plan of a call. Raises PlanError with every problem at once."""
    tree: dict[str, Any] = {k: dict(v) for k, v in sections.items()}
    place(tree, ["data", "path"], str(data))
    place(tree, ["source", "ref"], source if isinstance(source, str) else source.name)
    for key, value in settings.items():
        place(tree, key.split("."), value)
    return plans.check(tree, allow_code=allow_code)


@dataclass(frozen=True)
class Predictor:
    """A run's model, ready for new inputs."""

    model: nn.Module
    task: Task
    preprocessor: Preprocessor
    kind: Kind  # "image", "text" or "tensor"
    device: torch.device
    temperature: float | None = None  # that the run fitted on val

    def calibrated(self) -> Predictor:
        """The same model with logits divided by the run's temperature: the same answers, with
        probabilities that are as sure as the model is right.

        Raises UsageError for a run that fitted no temperature.
        """
        if self.temperature is None:
            raise UsageError(
                "this run fitted no temperature: it takes a classification task and rows for val"
            )
        head = copy.deepcopy(self.model.get_submodule("head"))
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.div_(self.temperature)
        model = Model(self.model.get_submodule("backbone"), head).eval()
        return replace(self, model=model, temperature=1.0)

    def predict(self, inputs: Sequence[str | Path | tuple[str, str]]) -> list[Prediction]:
        """Pictures by path, texts, or pairs of texts → a prediction each, in their order.

        Raises DataError for a picture that cannot be read.
        """
        examples = [
            Example(str(i), x if isinstance(x, tuple) else (str(x),), (), str(x))
            for i, x in enumerate(inputs)
        ]
        if not examples:
            return []
        if self.kind == "image":
            vet(e.inputs[0] for e in examples)
        batches = Batches(
            examples, torch.zeros(len(examples)), self.preprocessor, BATCH, device=self.device
        )
        # a single batch would only hand its memory back more slowly
        with freed_memory_kept() if len(examples) > BATCH else nullcontext():
            rows = self.task.scores(outputs(self.model, batches, self.device).values).numpy()
        return [self.as_prediction(row) for row in rows]

    def as_prediction(self, row: Any) -> Prediction:
        scores = {c: float(v) for c, v in zip(self.task.classes, row, strict=True)}
        label = self.task.label(row)
        return Prediction(label, scores.get(label) if self.task.name == "classification" else None,
                          scores)  # fmt: skip

    @freed_memory_kept()
    def evaluate(self, data: DataOptions) -> tuple[dict[str, Estimate], Scored, str]:
        """Metrics with intervals on new labelled data; also the scores and which rows they are of.

        Raises DataError for labels that the run does not know.
        """
        examples, which = rows_of(data, self.task, self.kind)
        targets = self.task.encode(cells_of(examples))
        batches = Batches(examples, targets, self.preprocessor, BATCH, device=self.device)
        rows = scored(outputs(self.model, batches, self.device), self.task, examples)
        metrics = {name: module("metrics", name) for name in self.task.metrics}
        return estimates(self.task, metrics, rows), rows, which


def load(run: str | Path, *, device: str = "cpu") -> Predictor:
    """A run's model. Loads weights and JSON only; no code of the plan is run.

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
    result = records.read(folder, "result.json", records.Calibrated) or {}
    temperature = (result.get("calibration") or {}).get("temperature")
    outputs_of_head = getattr(source.head, "out_features", task.outputs)
    if task.outputs != outputs_of_head:
        why = f"{task.outputs} classes for {outputs_of_head} outputs"
        raise guarded.damaged(folder, "model/labels.json", why)
    return Predictor(
        model, task, build(source.preprocess), source.kind, torch.device(device), temperature,
    )  # fmt: skip


def plan_of(run: str | Path) -> Plan:
    """The plan that a run was made from; code that it names is not run."""
    return plans.read_run_plan(Path(run))
