"""The record of a prediction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one row.

    ``label`` is a class name, the labels joined by ";", or a number as text. ``classes`` is the row's set, the most
    probable class first; ``intervals`` has (low, high) of each number. ``accepted`` says whether the model is confident
    enough for evaluate.max_error. All three are None unless sets were asked for, and the run has them.
    """

    label: str
    probability: float | None
    scores: dict[str, float]
    classes: tuple[str, ...] | None = None
    intervals: dict[str, tuple[float, float]] | None = None
    accepted: bool | None = None
