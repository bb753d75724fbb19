"""Records of verdicts and predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..runs.estimates import Estimate

VerdictLabel = Literal["transfer helps", "no evidence", "transfer hurts", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """An answer to "does transfer help?", with its gain and its reason."""

    words: VerdictLabel
    gain: Estimate | None  # over scratch, on the primary metric; positive means that transfer helps
    seeds: int
    why: str  # one sentence


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one row.

    ``label`` is a class name, the labels joined by ";", or a number as text.
    """

    label: str
    probability: float | None
    scores: dict[str, float]
