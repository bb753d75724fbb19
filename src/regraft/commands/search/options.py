"""The options of a search beside its plan, which the command line reads without torch and Optuna."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any


def option(default: Any, text: str) -> Any:
    """Return a field with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TuneOptions:
    """How a worker of a search finds its study, and what it does at the end."""

    study: str | None = option(None, "database that workers share, as postgresql://HOST/NAME; default: OUT/study.db")
    name: str | None = option(None, "name of the study in the database; default: the folder's")
    wait: str = option("60s", "seconds to wait for a database that is away")
    heartbeat: int = option(30, "seconds between a worker's signs; after three missed ones its trial goes to another")
    fit: bool = option(False, "run the winner's plan into OUT/run, which opens test")

    def __post_init__(self) -> None:
        """Check the options. Raises ValueError, which begins with the option's name."""
        if not re.fullmatch(r"\d+(\.\d+)?\s*s?", self.wait):
            raise ValueError(f'wait takes seconds, as 60s, not "{self.wait}"')
        if self.heartbeat < 1:
            raise ValueError(f"heartbeat takes 1 second or more, not {self.heartbeat}")

    @property
    def wait_s(self) -> float:
        """Return the seconds to wait for a database."""
        return float(self.wait.rstrip("s"))
