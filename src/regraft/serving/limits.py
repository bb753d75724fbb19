"""What a request may cost. Each limit has its answer: see the table in docs/decisions/013."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    batch: int = 32  # rows of a forward pass, at most
    wait_ms: float = 5.0  # for rows that are on their way; a request that is alone waits for none
    queue: int = 256  # requests that are accepted and not yet answered; more: 429
    seconds: float = 30.0  # from acceptance to answer; more: 504
    megabytes: float = 20.0  # of a request's body; more: 413
    body_seconds: float = 15.0  # for a request's headers, and for its body; more: 408
    held_megabytes: float = 200.0  # of bodies that are being read or decoded, in all; more: 503
    megapixels: float = 50.0  # that a picture's header may claim; more: 413
    letters: int = 100_000  # of a text; more: 413
    explanations: int = 4  # that are accepted and not yet answered; more: 429

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "wait_ms"):
                raise ValueError(f"{name} must be above 0, not {value:g}")

    @property
    def body(self) -> int:
        """Bytes."""
        return int(self.megabytes * MEGABYTE)

    @property
    def held(self) -> int:
        """Bytes; one body of the largest size always fits."""
        return max(self.body, int(self.held_megabytes * MEGABYTE))
