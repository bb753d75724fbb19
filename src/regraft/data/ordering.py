"""Random numbers by key, the order of an epoch, and its division into batches: functions of (seed, epoch, ids).

Batches differ by one row at most: a last batch of a single row would stop batch norm, or leave it with
the statistics of one row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .columns import ids_of, some_of
from .types import Example

Key = tuple[int, int, str]  # (seed, epoch, id)

WINDOW_BATCHES = 16  # batches whose texts are sorted by length together


EVALUATION_BATCH, EVALUATION_FACTOR = 32, 8  # few rows make small batches, which need not hold where none trains


def evaluation_batch(batch_size: int) -> int:
    """Return the rows of a batch of evaluation: at least 32, but no more than 8 batches of training, for its memory."""
    return max(batch_size, min(EVALUATION_BATCH, EVALUATION_FACTOR * batch_size))


@dataclass(frozen=True)
class EpochOrder:
    """The batch size of a split, the seed of its order, and this rank's part."""

    batch_size: int
    seed: int = 0
    strata: Sequence[str] | None = None  # one a row: an epoch draws each stratum equally often; None: each row once
    share: tuple[int, int] = (0, 1)  # rank and world size: an epoch yields this rank's part of each batch

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is 1 or more, not {self.batch_size}")

    def count(self, rows: int) -> int:
        """Return the number of batches that so many rows make."""
        return math.ceil(rows / self.batch_size)

    def evaluation(self, rows: int, length: Callable[[int], int] | None = None) -> list[list[int]]:
        """Return the batches of an evaluation, as row numbers: rows as they stand or, with lengths, by length."""
        return self._split(list(range(rows)) if length is None else sorted(range(rows), key=length))

    def epoch(
        self, examples: Sequence[Example], epoch: int, length: Callable[[int], int] | None = None
    ) -> list[list[int]]:
        """Return the batches of an epoch, as draws: draw d is row d % N, drawn d // N times before."""
        ids = list(ids_of(examples))
        strata = self.strata
        draws = order(ids, self.seed, epoch) if strata is None else balanced(ids, strata, self.seed, epoch)
        return self.training(draws, examples, epoch, length)

    def training(
        self, draws: Sequence[int], examples: Sequence[Example], epoch: int, length: Callable[[int], int] | None = None
    ) -> list[list[int]]:
        """Divide draws into batches. Texts of like length stand together: within a window of batches they are
        sorted by length, and the batches are shuffled again."""
        if length is None:
            return self._split(draws)
        parts: list[list[int]] = []
        width = WINDOW_BATCHES * self.batch_size
        for start in range(0, len(draws), width):
            parts += self._split(sorted(draws[start : start + width], key=length))
        return [parts[i] for i in order([name_draw(examples, p[0]) for p in parts], self.seed, epoch)]

    def _split(self, draws: Sequence[int]) -> list[list[int]]:
        if not draws:
            return []
        return [part.tolist() for part in np.array_split(draws, self.count(len(draws)))]


def order(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Return the positions of the ids in an epoch's order, a function of (seed, epoch, ids) alone."""
    return sorted(range(len(ids)), key=lambda i: (stable("order", seed, epoch, ids[i]), ids[i]))


def balanced(ids: Sequence[str], strata: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Return as many draws as rows, of each stratum equally often (± 1), in an order that is a function of
    (seed, epoch, ids). Class-balanced sampling: Kang et al. 2020, 1910.09217, section 4.1, without chance
    in the counts: a stratum's rows are all drawn before one is drawn again.

    Draw d is row d % N; d // N counts its earlier draws in this epoch.
    """
    n, names = len(ids), sorted(set(strata))
    names = [names[k] for k in order(names, seed, epoch)]  # the first ones have one draw more
    members: dict[str, list[int]] = {name: [] for name in names}
    for i, name in enumerate(strata):
        members[name].append(i)
    drawn: list[int] = []
    for k, name in enumerate(names):
        rows = members[name]
        rows = [rows[j] for j in order([ids[i] for i in rows], seed, epoch)]
        quota = n // len(names) + (k < n % len(names))
        drawn += [rows[d % len(rows)] + n * (d // len(rows)) for d in range(quota)]
    keys = [f"{ids[d % n]} {d // n}" for d in drawn]
    return [drawn[k] for k in order(keys, seed, epoch)]


def name_draw(examples: Sequence[Example], draw: int) -> str:
    """Return the key of a draw's random numbers: the row's id, and its earlier draws in this epoch."""
    before, row = divmod(draw, len(examples))
    (id_,) = ids_of(some_of(examples, [row]))
    return f"{id_} {before}" if before else id_


# ---------------------------------------------------------------- random numbers


def stable(*parts: object) -> int:
    """Return 63 bits that are a function of the parts, equal in every process and version."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def drawing(key: Key) -> Iterator[None]:
    """Seed torch's CPU generator by ``key`` inside the block; restore it afterwards.

    torch.manual_seed would seed every accelerator too, and format a stack trace for each.
    """
    import torch

    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(stable(*key))
    try:
        yield
    finally:
        generator.set_state(before)
