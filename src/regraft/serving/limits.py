"""Limits of a request. Each has its answer: see the table in docs/decisions/013."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MEGABYTE = 1_000_000


def described(default: Any, text: str) -> Any:
    """Return a dataclass field whose ``text`` the help shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Limits:
    """Limits on the cost of a request. Raises ValueError for one that is not above 0; only wait_ms may be 0."""

    batch: int = described(32, "rows of a forward pass, at most")
    wait_ms: float = described(5.0, "milliseconds that a batch waits for rows on their way")
    queue: int = described(256, "requests accepted and not yet answered, at most; further ones get 429")
    seconds: float = described(30.0, "seconds from acceptance to answer, at most; then the request gets 504")
    megabytes: float = described(20.0, "megabytes of a request's body, at most; a larger one gets 413")
    body_seconds: float = 15.0  # for a request's headers, and again for its body; then 408
    held_megabytes: float = 100.0  # megabytes of all bodies being read or decoded; then 503
    megapixels: float = 50.0  # million pixels that a picture's header may claim; then 413
    letters: int = 100_000  # letters of a text; then 413
    explanations: int = 4  # explanations accepted and not yet answered; then 429

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "wait_ms"):
                raise ValueError(f"{name} must be above 0, not {value:g}")

    @property
    def body(self) -> int:
        """Return bytes."""
        return int(self.megabytes * MEGABYTE)

    @property
    def held(self) -> int:
        """Return bytes; one body of the largest size always fits."""
        return max(self.body, int(self.held_megabytes * MEGABYTE))
