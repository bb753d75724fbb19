"""Checks of the data, one file each; found by its name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ..compute.arrays import Kind
from ..data.types import Example

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


# ---------------------------------------------------------------- checks

Severity = Literal["problem", "caution", "note"]

Need = Literal["features", "probabilities", "tokens", "source names", "source rows"]


@dataclass(frozen=True)
class Finding:
    """Something that a check found: how much of it, where, and what to do."""

    severity: Severity  # problem: figures would be wrong or fit stops; caution: look; note: know
    what: str  # "rows of test are also in train"
    count: int
    of: int
    examples: tuple[str, ...]  # the rows, all of them; those who show it cut the list
    remedy: str
    check: str = ""  # the file of checks/ that found it


@dataclass(frozen=True)
class CheckContext:
    """What a check may look at. The tables by id are there where a check needs them and they could
    be had."""

    kind: Kind
    task: str  # a file of tasks/
    splits: Mapping[str, Sequence[Example]]  # train, val and test, each of any length
    names: Callable[[Example], tuple[str, ...]]  # its class or its labels; none of a number
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    empty: tuple[str, ...] = ()
    features: Mapping[str, FloatArray] | None = None  # id → [D], of the source's backbone
    probabilities: Mapping[str, FloatArray] | None = None  # id → [C], by a probe that never saw it
    classes: tuple[str, ...] = ()  # of the probabilities, in their order
    tokens: Mapping[str, int] | None = None  # id → tokens of the whole text
    max_tokens: int = 0  # as many as the source reads
    source_names: tuple[str, ...] | None = None  # the source's classes in words
    source_rows: Sequence[Example] | None = None

    @property
    def rows(self) -> tuple[Example, ...]:
        """Every row as an object: of many rows that is much memory."""
        return tuple(e for part in self.splits.values() for e in part)

    @property
    def count(self) -> int:
        """Rows of all splits."""
        return sum(map(len, self.splits.values()))


class Check(Protocol):
    """A file of ``checks/``: a module with these names."""

    NEEDS: frozenset[Need]  # beside the rows themselves; none: ``fit`` runs it always

    def check(self, seen: CheckContext) -> Iterable[Finding]:
        """What it found; nothing where all is well. Neither rows nor files are changed."""
        ...
