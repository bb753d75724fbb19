"""The record of a prediction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one row.

    ``label`` is a class name, the labels joined by ";", or a number as text.
    """

    label: str
    probability: float | None
    scores: dict[str, float]
