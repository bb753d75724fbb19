"""Admission of requests: how many may wait, how many may ask for an explanation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from .figures import Figures

RETRY = {"retry-after": "1"}  # seconds


class AdmissionControl:
    """Counts of the requests inside, of explanations among them, and of those on their way to the batcher."""

    def __init__(self, figures: Figures, places: int, explanations: int) -> None:
        self.figures, self.places, self.explanations = figures, places, explanations
        self.inside = self.explaining = self.coming = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place inside the block. Raises HTTPException 429 where all places are taken."""
        if self.inside >= self.places:
            raise HTTPException(429, f"{self.places} requests are waiting: try again", RETRY)
        self.inside += 1
        self.figures.waiting.set(self.inside)
        try:
            yield
        finally:
            self.inside -= 1
            self.figures.waiting.set(self.inside)

    @contextmanager
    def explanation(self) -> Iterator[None]:
        """Hold a place for an explanation, which costs about fifty predictions. Raises HTTPException 429."""
        if self.explaining >= self.explanations:
            raise HTTPException(429, "other explanations are being made: try again", RETRY)
        self.explaining += 1
        try:
            yield
        finally:
            self.explaining -= 1

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        """Count a row that will reach the batcher soon; the batcher waits for it."""
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1
