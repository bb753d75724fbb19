"""Source data: labelled rows of the source task, for what fitting costs it and for penalties.

    fit      penalties draw from them (Fisher information, replay)
    select   the point of the frontier is chosen on them
    report   what is claimed; looked at once, at the end

Rows come with a split where the source was trained on some of them: train → fit, val → select, test
→ report, and held-out rows without both are halved. All other rows are divided once by a hash of
their content (or group): a half, a quarter, a quarter.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from .. import plugins
from ..compute.device import Compute
from ..data.batches import Batches, LabelledRows
from ..data.columns import cells_of, concatenated, groups_of, ids_of, some_of
from ..data.loading import load_data, rows_and_splits
from ..data.ordering import EpochOrder
from ..data.preprocessing import Preprocessor, build
from ..data.readers import make_reader
from ..data.splitting import check_cells, digest_of
from ..data.types import Augment, Example, content_of
from ..errors import DataError, PlanError, RegraftError
from ..evidence.scoring import Predictions, at_threshold, score
from ..metrics import Metric
from ..model.forward import outputs
from ..model.grafting import Model
from ..model.types import Source
from ..plan import read as plan_read
from ..regularizers import Found
from ..runs.folder import is_run, read_json, read_task
from ..runs.side_files import Environment
from ..tasks import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..compute.arrays import Inputs
    from ..plan.schema import Plan


Part = Literal["fit", "select", "report"]


@dataclass(frozen=True)
class SourceData:
    """Rows of the source task with their labels as the source's own head numbers them."""

    source: Source
    task: Task
    metric: Metric
    parts: Mapping[Part, Sequence[Example]]
    preprocessor: Preprocessor
    batch_size: int = 32
    augment: Augment | None = None  # of what ``draws`` gives
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    kept: dict[Hashable, Any] = field(default_factory=dict)  # of ``once``

    def batches(self, part: Part) -> Batches:
        """Return a part's rows as evaluation sees them."""
        return self._batches(part, None)

    def draws(self) -> Stream:
        """Return endless batches of fit rows, augmented, in an order that the seed decides."""
        return Stream(self._batches("fit", self.augment))

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """Return what ``compute`` gave the first time; copies with another seed share it."""
        if key not in self.kept:
            self.kept[key] = compute()
        return cast(Found, self.kept[key])

    def scored(self, backbone: nn.Module, part: Part) -> Predictions:
        """Return predictions of the source's own, untouched head on a backbone's features."""
        assert self.source.head is not None
        model = Model(backbone, self.source.head).to(self.compute.device)
        rows = outputs(model, self.batches(part), self.compute)
        return score(rows, self.task, self.parts[part])

    @property
    def digest(self) -> str:
        """Return the digest of the report rows, the ledger's key."""
        return digest_of({"report": self.parts["report"]})

    @property
    def all_digest(self) -> str:
        """Return the digest of every row."""
        return digest_of({str(name): rows for name, rows in self.parts.items()})

    def _batches(self, part: Part, augment: Augment | None) -> Batches:
        examples = self.parts[part]
        rows = LabelledRows(examples, self.task.encode(cells_of(examples)))
        reader = make_reader(self.preprocessor, examples, augment=augment)
        return Batches(rows, reader, EpochOrder(self.batch_size, self.seed), self.compute)


class Stream:
    """The epochs of ``batches`` one after another, on their device; see regraft.regularizers.Draws."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.drawn = 0

    @property
    def drawn(self) -> int:
        return self._drawn

    @drawn.setter
    def drawn(self, count: int) -> None:
        self._drawn = count
        self._left = self._from(count)

    def _from(self, count: int) -> Iterator[tuple[tuple[str, ...], Inputs, Tensor]]:
        done, skip = divmod(count, self.batches.count)
        for epoch in itertools.count(done + 1):
            yield from self.batches.epoch(epoch, skip)
            skip = 0

    def __next__(self) -> tuple[tuple[str, ...], Inputs, Tensor]:
        ids, inputs, targets = next(self._left)
        self._drawn += 1
        return ids, inputs, targets.to(self.batches.compute.device)


def load_source_data(plan: Plan, source: Source) -> tuple[SourceData | None, list[str]]:
    """Return the plan's source data, or the data of a source run, and notes for the user.

    Raises PlanError and DataError for named data that cannot be used. If a run's own data are gone, that is a
    note: the plan did not ask for them.
    """
    named = plan.source_data.path
    if named == "none" or source.nothing_kept:
        return None, []
    if named != "own":
        return named_data(plan, source)
    folder = Path(source.name)
    if source.head is None or not is_run(folder):
        return None, []
    try:
        return run_data(folder, source), []
    except RegraftError as error:
        return None, [f"forgetting is seen by a proxy alone: the data of {folder}: {error}"]


def named_data(plan: Plan, source: Source) -> tuple[SourceData, list[str]]:
    """Return the rows that ``[source_data]`` names, with labels that the source's head knows."""
    options = plan.source_data
    if source.head is None:
        raise PlanError([f"source_data: {source.name} has no head to measure with: remove source_data"])
    task = source_task(source, plan.source_data.classes)
    examples, splits, notes = rows_and_splits(options, source.kind)
    check_cells({"source data": examples}, task, options.path)
    return assemble(source, task, divide(examples, splits), options.path), notes


def run_data(folder: Path, source: Source) -> SourceData:
    """Return the rows that a run was made from, as it split them. Raises a RegraftError if they have changed."""
    plan = plan_read.read_run_plan(folder)
    options = plan.plugins.task
    data = plan.data.for_task(options)
    splits, _ = load_data(data, options.make, options.strata)
    if splits.digest != read_json(folder, "environment.json", Environment).data_digest:
        raise DataError(f"{data.path} has changed since the run")
    rows = concatenated([splits.train, splits.val, splits.test])
    names = ["train"] * len(splits.train) + ["val"] * len(splits.val) + ["test"] * len(splits.test)
    return assemble(source, source_task(source, []), divide(rows, names), data.path)


def source_task(source: Source, classes: Sequence[str]) -> Task:
    """Return the task of the source's head: a run's own, else classification by given or known names.

    Raises PlanError if the names of the outputs are unknown, or too few or many are given.
    """
    if is_run(Path(source.name)):
        return read_task(Path(source.name))
    names = tuple(classes) or source.labels
    if not names:
        raise PlanError(
            [
                f"source_data: {source.name} does not name the outputs of its head: list them in "
                f"source_data.classes, in order"
            ]
        )
    assert source.head is not None
    with torch.no_grad():
        outputs = source.head.cpu()(torch.zeros(2, source.features)).shape[1]
    if len(names) != outputs:
        raise PlanError([f"source_data.classes: {len(names)} names for the {outputs} outputs of {source.name}"])
    task: Task = plugins.module("tasks", source.task).restore({"classes": list(names)})
    return task


def assemble(source: Source, task: Task, parts: Mapping[Part, Sequence[Example]], where: str) -> SourceData:
    if empty := [name for name, rows in parts.items() if not rows]:
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in parts.items())
        raise DataError(f"{where} is too small a source sample ({counts}): no {empty[0]} rows")
    metric: Any = plugins.module("metrics", task.primary)
    return SourceData(source, task, at_threshold(metric, task), parts, build(source.preprocess))


def divide(examples: Sequence[Example], splits: Sequence[str | None]) -> dict[Part, Sequence[Example]]:
    """Divide rows into fit, select and report; see the head of this file."""
    named = [split or "train" for split in splits]
    by = {s: [i for i, n in enumerate(named) if n == s] for s in ("train", "val", "test")}
    held = by["val"] + by["test"]
    places = [place(*of) for of in zip(ids_of(examples), groups_of(examples), strict=True)]
    if not (by["train"] and held):
        rows = by["train"] + held
        fit = [i for i in rows if places[i] < 0.5]
        select = [i for i in rows if 0.5 <= places[i] < 0.75]
        report = [i for i in rows if places[i] >= 0.75]
    elif by["val"] and by["test"]:
        fit, select, report = by["train"], by["val"], by["test"]
    else:
        fit = by["train"]
        select = [i for i in held if places[i] < 0.5]
        report = [i for i in held if places[i] >= 0.5]
    return {"fit": some_of(examples, fit), "select": some_of(examples, select), "report": some_of(examples, report)}


def place(id_: str, group: str | None) -> float:
    """Return a number in [0, 1) that depends on the row's group, or else on its content alone."""
    key = content_of(id_) if group is None else f"group {group}"
    return int(hashlib.sha256(f"source {key}".encode()).hexdigest()[:12], 16) / 16**12
