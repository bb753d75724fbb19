"""Figures with their intervals, as regraft computes them and as result.json stores them.

An undefined number is NaN here and null in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from .records import Count, Figure, Figures, MaybeNumber, Share, Text

VerdictLabel = Annotated[
    Literal["transfer helps", "not decided", "transfer hurts", "not measured"],
    BeforeValidator(lambda words: "not decided" if words == "no evidence" else words),  # the word of older runs
]

CONFIG = {"use_attribute_docstrings": True}  # the schema's descriptions are the docstrings below


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and the number of rows behind it.

    Both ends are NaN where these rows carry no interval: they are alike in all that the figure depends on, or the
    metric is biased, so that percentiles would miss its true value.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = CONFIG

    value: Figure
    """The figure, in the metric's unit; undefined: NaN, null in result.json."""
    low: Figure
    """Lower end of the 95 % interval; null: these rows carry no interval."""
    high: Figure
    """Upper end of the 95 % interval; null: these rows carry no interval."""
    n: Count
    """Rows behind the figure."""

    @classmethod
    def without_interval(cls, value: float, n: int) -> Estimate:
        """Return a figure whose rows carry no interval."""
        return cls(value, nan, nan, n)

    @property
    def has_interval(self) -> bool:
        """Return whether both ends are numbers."""
        return not (isnan(self.low) or isnan(self.high))

    def __str__(self) -> str:
        return self.text()

    def text(self, sign: str = "") -> str:
        """Return the figure with its interval, with three digits. ``sign`` "+" gives each number its sign."""
        if isnan(self.value):
            return "–"
        ends = f"[{self.low:{sign}.3f}, {self.high:{sign}.3f}]" if self.has_interval else "[no interval]"
        return f"{self.value:{sign}.3f} {ends}"


@dataclass(frozen=True)
class Verdict:
    """An answer to "does transfer help?", over training from scratch."""

    __pydantic_config__: ClassVar[dict[str, Any]] = CONFIG

    words: VerdictLabel
    """The answer."""
    gain: Estimate | None
    """Gain over scratch on the primary metric; positive is better; None if it was not measured."""
    seeds: Count
    """Seeds that were compared."""
    why: Text
    """The reason, in one sentence."""


@dataclass(frozen=True)
class Retained:
    """Retention of the source task: a backbone on source rows, compared with the source's own."""

    __pydantic_config__: ClassVar[dict[str, Any]] = CONFIG

    before: Figure
    """Source metric of the source."""
    after: Figure
    """Source metric after fine-tuning."""
    ratio: MaybeNumber
    """(after − chance) ÷ (before − chance); None if the metric defines none."""
    low: MaybeNumber
    """Lower bound of the ratio, one-sided, at 95 % confidence; None likewise."""


@dataclass(frozen=True)
class Point:
    """A point of the frontier: the weights at α, between the start and the fit."""

    __pydantic_config__: ClassVar[dict[str, Any]] = CONFIG

    alpha: Share
    """α, from 0 (the start) to 1 (the fit)."""
    figures: Figures
    """The primary metric and "loss", on val or over the folds."""
    source: Retained | None = None
    """Retention on the source's select rows; None without source data."""

    @property
    def loss(self) -> float:
        """Return the task's loss, on val or over the folds."""
        return self.figures["loss"]
