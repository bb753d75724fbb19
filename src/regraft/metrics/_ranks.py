"""Sums of row weight below each positive row of a column of scores.

AUC and average precision need the weight of each column's negatives below and at the scores of its
positives. The distinct scores of the positives cut the scores into slots: one between two neighbours, one at
each score. Only the slot of a negative matters. The fullest slot of a column is the column's total less its
other slots, so its rows are not stored. For a good model these are nearly all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray

    Ints = NDArray[np.int64]


STORED = 2_000_000  # most rows of negatives in a block, unless a single column has more


@dataclass(frozen=True)
class Weighed:
    """Sums of weight of K columns with U distinct positive scores in all, at R weightings."""

    positives: FloatArray  # [U, R] at each score
    below: FloatArray  # [U, R] of negatives under each score
    upto: FloatArray  # [U, R] of negatives under it or equal
    positive: FloatArray  # [K, R] of all positives of a column
    negative: FloatArray  # [K, R]
    columns: Ints  # [K], the first score of each column


@dataclass(frozen=True)
class Block:
    """Columns, prepared for weights."""

    slots: Any  # sparse ones [S, N]: the negatives of each slot; the fullest has none stored
    first: Ints  # [K], the first slot of each column
    fullest: Ints  # [K], the fullest slot of each column
    below: Ints  # [U], the slot right below each score; the slot at the score follows
    rows: Ints  # [P], positives by column and score
    scores: Ints  # [U], the first of ``rows`` at each score
    columns: Ints  # [K], the first score of each column

    def weigh(self, by_row: FloatArray) -> Weighed:
        """Return the sums of weights [N, R]."""
        at = np.add.reduceat(by_row[self.rows], self.scores, axis=0)  # [U, R]
        positive = np.add.reduceat(at, self.columns, axis=0)  # [K, R]
        negative = by_row.sum(axis=0) - positive
        sums = self.slots @ by_row  # [S, R]
        sums[self.fullest] = negative - np.add.reduceat(sums, self.first, axis=0)
        sums[self.first[1:]] -= negative[:-1]  # each column's running sum then starts at 0
        running = np.cumsum(sums, axis=0)
        return Weighed(at, running[self.below], running[self.below + 1], positive, negative, self.columns)


def blocks(columns: Iterable[tuple[NDArray[np.bool_], Any]], n: int) -> Iterator[Block]:
    """Yield blocks of columns, each (positive [n], scores [n]) with rows of both kinds."""
    waiting: list[_Column] = []
    for positive, scores in columns:
        waiting.append(_column(positive, np.asarray(scores)))
        stored = sum(len(c.rows) for c in waiting)
        if stored >= STORED or sum(c.slots for c in waiting) >= max(4 * n, 64):
            yield _block(waiting, n)
            waiting = []
    if waiting:
        yield _block(waiting, n)


@dataclass(frozen=True)
class _Column:
    """Positives of a column by score, and its negatives by slot."""

    positives: Ints  # row numbers, by score
    scores: Ints  # the first of the positives at each distinct score
    rows: Ints  # row numbers of negatives, by slot; the fullest slot is left out
    counts: Ints  # negatives stored of each slot
    fullest: int  # slot

    @property
    def slots(self) -> int:
        return len(self.counts)


def _column(positive: NDArray[np.bool_], scores: Any) -> _Column:
    own = np.flatnonzero(positive)
    own = own[np.argsort(scores[own], kind="stable")]
    distinct, first = np.unique(scores[own], return_index=True)
    others = np.flatnonzero(~positive)
    slot = np.searchsorted(distinct, scores[others], "left")
    slot += np.searchsorted(distinct, scores[others], "right")  # 2k below score k, 2k + 1 at it
    counts = np.bincount(slot, minlength=2 * len(distinct) + 1)
    fullest = int(counts.argmax())
    stored = slot != fullest
    rows = others[stored][np.argsort(slot[stored], kind="stable")].astype(np.int32)
    counts[fullest] = 0
    return _Column(own, first, rows, counts, fullest)


def _block(columns: list[_Column], n: int) -> Block:
    from scipy.sparse import csr_array

    slots = _starts(c.slots for c in columns)
    scores = _starts(len(c.scores) for c in columns)
    positives = _starts(len(c.positives) for c in columns)
    rows = np.concatenate([c.rows for c in columns])
    ends = np.cumsum(np.concatenate([[0], *(c.counts for c in columns)]))
    return Block(
        slots=csr_array((np.ones(len(rows)), rows, ends), shape=(len(ends) - 1, n)),
        first=slots,
        fullest=slots + np.array([c.fullest for c in columns]),
        below=np.concatenate([at + 2 * np.arange(len(c.scores)) for at, c in zip(slots, columns, strict=True)]),
        rows=np.concatenate([c.positives for c in columns]),
        scores=np.concatenate([at + c.scores for at, c in zip(positives, columns, strict=True)]),
        columns=scores,
    )


def _starts(sizes: Iterable[int]) -> Ints:
    """Return the offset at which each of these sizes begins, laid end to end."""
    return np.cumsum([0, *sizes])[:-1]
