"""Checks of the data, one file each. regraft finds a check by its file's name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """A fault that a check found: its kind, its rows and the remedy."""

    severity: Severity  # problem: wrong figures, or fit stops; caution: look at them; note: for information
    what: str  # "rows of test are also in train"
    count: int
    of: int
    examples: tuple[str, ...]  # every row; the callers that print them cut the list
    remedy: str
    check: str = ""  # the check's name


def findings_on(severity: Severity, what: str, examples: Sequence[str], of: int, remedy: str) -> Iterator[Finding]:
    """Yield a finding that counts these examples. Yields none where there are no examples."""
    if examples:
        yield Finding(severity, what, len(examples), of, tuple(examples), remedy)


@dataclass(frozen=True)
class CheckContext:
    """Rows and tables that a check may read.

    A table by id is None where no check asks for it, or where it cannot be computed.
    """

    kind: Kind
    task: str  # the task's name
    splits: Mapping[str, Sequence[Example]]  # train, val and test, each of any length
    names: Callable[[Example], tuple[str, ...]]  # the row's class or labels; empty for regression
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    empty: tuple[str, ...] = ()
    features: Mapping[str, FloatArray] | None = None  # id → [D], of the source's backbone
    probabilities: Mapping[str, FloatArray] | None = None  # id → [C], by a probe that never saw it
    classes: tuple[str, ...] = ()  # in the order of the probabilities
    tokens: Mapping[str, int] | None = None  # id → tokens of the uncut text
    max_tokens: int = 0  # the most that the source reads
    source_names: tuple[str, ...] | None = None  # names of the source's classes
    source_rows: Sequence[Example] | None = None

    @property
    def rows(self) -> tuple[Example, ...]:
        """Return every row as an object. Many rows take much memory."""
        return tuple(e for part in self.splits.values() for e in part)

    @property
    def count(self) -> int:
        """Count the rows of all splits."""
        return sum(map(len, self.splits.values()))


class Check(Protocol):
    """A module in ``checks/``, with these names."""

    NEEDS: frozenset[Need]  # beside the rows; ``fit`` always runs a check that needs nothing

    def check(self, context: CheckContext) -> Iterable[Finding]:
        """Yield findings; none where all is well. Changes neither rows nor files."""
        ...
