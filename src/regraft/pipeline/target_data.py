"""The target rows of a job: encoded, batched, divided into folds; and the memo of what was computed of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..compute import distributed
from ..data.batches import Batches, LabelledRows
from ..data.columns import InputsOf, groups_of, ids_of
from ..data.ordering import EpochOrder
from ..data.preprocessing import TextPreprocessor, starts_whole
from ..data.readers import Tokens, make_reader
from ..evidence.linear_probe import Fold, folds_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.device import Compute
    from ..data.image_store import DecodedImages
    from ..data.preprocessing import Preprocessor
    from ..data.store import Entry
    from ..data.types import Augment, Example, Splits
    from ..metrics import Metric
    from ..model.forward import Outputs
    from ..tasks import Task

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
        """Return a split's batches, or those of some of its rows; augmented only for training."""
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
            loading.batch_size,
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
