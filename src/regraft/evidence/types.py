"""The record of a prediction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """A row's answer. ``label`` is a class name, the labels joined by ";", or a number as text."""

    label: str
    probability: float | None
    scores: dict[str, float]
