"""The rows of a job: those of the target, encoded, batched and divided into folds; and those of the source task.

Labelled source rows say what fitting costs the source task, and penalties use them:

    fit      penalties draw from them (Fisher information, replay)
    select   the point of the frontier is chosen on them
    report   what is claimed; opened once, at the end

Rows come with a split where the source was trained on some of them: train → fit, val → select, test
→ report, and held-out rows without both are halved. All other rows are divided once by a hash of
their content (or group): a half, a quarter, a quarter.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch

from .. import plugins
from ..compute import distributed
from ..compute.device import Compute
from ..data.batches import Batches, LabelledRows
from ..data.columns import InputsOf, cells_of, concatenated, groups_of, ids_of, some_of
from ..data.loading import load_data, rows_and_splits
from ..data.ordering import EpochOrder, evaluation_batch
from ..data.preprocessing import Preprocessor, TextPreprocessor, build, starts_whole
from ..data.readers import Tokens, make_reader, use_image_cache
from ..data.splitting import check_cells, digest_of
from ..data.types import Augment, Example, content_of
from ..errors import DataError, PlanError, RegraftError
from ..evidence.linear_probe import Fold, folds_of
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
    from ..data.image_store import DecodedImages
    from ..data.store import Entry, FeatureCache
    from ..data.types import Splits
    from ..model.forward import Outputs
    from ..plan.schema import Plan

T = TypeVar("T")


@dataclass
class Memo:
    """Results that the fits of a run share."""

    images: dict[tuple[str, bool], DecodedImages | None] = field(default_factory=dict)  # (split, whole image)
    entries: dict[str, Entry] = field(default_factory=dict)  # cache key → outputs of frozen blocks
    decisions: dict[str, str] = field(default_factory=dict)  # cache key → "live" or "kept"; saved in checkpoints
    reported: set[str] = field(default_factory=set)  # sentences that are reported once a run
    values: dict[Hashable, Any] = field(default_factory=dict)  # of penalties, by their own keys
    _features: dict[tuple[str, str], Outputs] = field(default_factory=dict)
    _tokens: dict[str, Tokens] = field(default_factory=dict)

    def features(self, split: str, precision: str, compute: Callable[[], Outputs]) -> Outputs:
        """Return the source's features of a split; compute them at the first call."""
        return once(self._features, (split, precision), compute)

    def tokens(self, split: str, compute: Callable[[], Tokens]) -> Tokens:
        """Return a split's tokens; compute them at the first call."""
        return once(self._tokens, split, compute)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return a penalty's value; compute it at the first call."""
        return cast(T, once(self.values, key, compute))

    @contextmanager
    def local_scope(self) -> Iterator[None]:
        """Drop what is added inside the block.

        One rank computes it alone there: other ranks lack it and would block in the next collective.
        """
        before = {name: value.copy() for name, value in vars(self).items()}
        try:
            yield
        finally:
            for name, value in before.items():
                getattr(self, name).clear()
                getattr(self, name).update(value)


def once(memo: dict[Any, T], key: Hashable, compute: Callable[[], T]) -> T:
    """Return the value of a key; compute it where there is none."""
    if key not in memo:
        memo[key] = compute()
    return memo[key]


@dataclass(frozen=True)
class Loading:
    """The plan's part of how batches are made."""

    batch_size: int
    workers: int
    augment: Augment  # of training batches
    balanced: bool  # an epoch has as many rows of each class


@dataclass(frozen=True)
class TargetData:
    """The target rows as the task encodes them and the source reads them."""

    splits: Splits
    task: Task
    metrics: dict[str, Metric]
    targets: dict[str, Tensor]  # split → encoded labels
    strata: list[str]  # of the training rows
    preprocessor: Preprocessor
    loading: Loading
    compute: Compute
    fold_count: int  # at most
    memo: Memo = field(default_factory=Memo)

    @property
    def metric(self) -> Metric:
        """Return the metric that choices are made by."""
        return self.metrics[self.task.primary]

    def rows(self, split: str) -> Sequence[Example]:
        """Return a split's rows."""
        rows: Sequence[Example] = getattr(self.splits, split)
        return rows

    def folds(self, rows: Sequence[int] | None = None) -> list[Fold]:
        """Return stratified folds of train, or of some of its rows; none where a class has one row."""
        chosen = range(len(self.splits.train)) if rows is None else rows
        groups = groups_of(self.splits.train)
        return folds_of([self.strata[i] for i in chosen], [groups[i] for i in chosen], self.fold_count)

    def batches(self, split: str, rows: Sequence[int] | None = None, *, seed: int = 0, train: bool = False) -> Batches:
        """Return a split's batches, or those of some of its rows; augmented only for training.

        Rows that never train come in larger batches where those of training are small.
        """
        labelled = LabelledRows(self.rows(split), self.targets[split])
        labelled = labelled if rows is None else labelled.take(rows)
        loading = self.loading
        reader = make_reader(
            self.preprocessor,
            labelled.examples,
            augment=loading.augment if train else None,
            workers=loading.workers,
            tokens=self._tokens(split, rows),
            images=self.memo.images.get((split, train and starts_whole(loading.augment))),
        )
        order = EpochOrder(
            loading.batch_size if split == "train" else evaluation_batch(loading.batch_size),
            seed,
            [self.strata[i] for i in rows or range(len(labelled))] if train and loading.balanced else None,
            (distributed.rank(), distributed.world_size()) if train else (0, 1),
        )
        return Batches(labelled, reader, order, self.compute)

    def _tokens(self, split: str, rows: Sequence[int] | None) -> Tokens | None:
        preprocessor = self.preprocessor
        if not isinstance(preprocessor, TextPreprocessor):
            return None
        found = self.memo.tokens(split, lambda: Tokens.of(preprocessor, InputsOf(self.rows(split))))
        return found if rows is None else found.take(rows)

    def train_rows(self, rows: Sequence[int] | None = None) -> RowsOfTrain:
        """Return train, or some of its rows, as penalties see it."""
        chosen = range(len(self.splits.train)) if rows is None else rows
        ids = list(ids_of(self.splits.train))
        return RowsOfTrain(self, sorted(chosen, key=ids.__getitem__))


@dataclass(frozen=True)
class RowsOfTrain:
    """The :class:`regraft.regularizers.TrainRows` of a job."""

    data: TargetData
    by_content: Sequence[int]

    @property
    def task(self) -> Task:
        """Return the task that the rows are labelled for."""
        return self.data.task

    def sample(self, rows: int) -> Batches:
        """Return the first ``rows`` by the hash of their content, as evaluation sees them."""
        return self.data.batches("train", self.by_content[:rows])

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what ``compute`` gave the first time."""
        return self.data.memo.once(key, compute)


# ---------------------------------------------------------------- source data


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
    images: dict[tuple[str, bool], DecodedImages | None] = field(default_factory=dict)  # (name of part, whole image)

    def keep_images(self, part: Part, passes: int, cache: FeatureCache | None, note: Callable[[str], None]) -> None:
        """Take a part's decoded images from the cache, if that pays over so many passes. Every rank must call this."""
        reader, rows = self.batches(part).reader, self.parts[part]
        use_image_cache(reader, rows, name_of(part), cache, passes, self.images, note)

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
        images = self.images.get((name_of(part), False)) if augment is None else None
        reader = make_reader(self.preprocessor, examples, augment=augment, images=images)
        size = evaluation_batch(self.batch_size) if part != "fit" else self.batch_size
        return Batches(rows, reader, EpochOrder(size, self.seed), self.compute)


def name_of(part: Part) -> str:
    """Return the name of a part of the source data for messages and the image cache."""
    return f"source data ({part})"


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
        raise PlanError(f"source_data: {source.name} has no head to measure with: remove source_data")
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
            f"source_data: {source.name} does not name the outputs of its head: list them in "
            f"source_data.classes, in order"
        )
    assert source.head is not None
    with torch.no_grad():
        outputs = source.head.cpu()(torch.zeros(2, source.features)).shape[1]
    if len(names) != outputs:
        raise PlanError(f"source_data.classes: {len(names)} names for the {outputs} outputs of {source.name}")
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
