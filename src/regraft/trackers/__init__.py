"""Trackers, one file each; found by name, see :mod:`regraft.plugins`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

# ---------------------------------------------------------------- trackers


class EpochFigures(NamedTuple):
    """An epoch of history.jsonl for a tracker: "loss/TERM", "val/METRIC", "source/METRIC", "rate/BLOCK"."""

    seed: int
    epoch: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class RunEnd:
    """The end of a run, for a tracker."""

    state: str  # finished, failed, interrupted, killed, left or broken
    words: str
    metrics: Mapping[str, float]  # "test/accuracy", "test/accuracy low", "gain/linear probe" …
    tags: Mapping[str, str]  # the verdict, the source, digests
    summary: str  # the block that ends a run; "" of one that is not finished
    files: Sequence[Path]  # plan, result, report: what is worth keeping with it

    @property
    def note(self) -> str:
        """Return the summary, or the words of a run without one."""
        return self.summary or self.words


class Tracker(Protocol):
    """A file of ``trackers/``: a module with these names.

    It may have ``place() -> str`` too, where runs go without --out; else they go into RUN/NAME.
    """

    needs: tuple[str, ...]  # modules of the extra "track"

    def track(
        self,
        name: str,
        params: Mapping[str, str],
        epochs: Iterable[EpochFigures],
        end: Callable[[], RunEnd],
        where: str,
    ) -> str:
        """Write ``epochs`` as they come, which may take as long as the run does, and then ``end()``.

        Return a sentence for the user: where the run is, and how to look at it.
        """
        ...


def as_code(text: str) -> str:
    """Return a text as a Markdown code block, so that a tracker's page shows it unchanged."""
    return "\n".join(f"    {line}" for line in text.splitlines())
