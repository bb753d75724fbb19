"""The ranges of ``[tune.ranges]``: the values that a search may give to keys of the plan.

A range is a table of bounds, or a list of choices. The plan's own reader tries the ends of each range, so that a key
that does not exist, or a bound that the key refuses, is a problem before anything trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar

from .. import plugins
from .plug_ins import Problem

Value = str | int | float | bool

Tree = dict[str, Any]  # a plan's plain values

NOT_SEARCHED = {  # tables and keys whose values make trials incomparable, or no better
    "data": "trials would be judged on different rows",
    "source_data": "trials would be judged on different rows",
    "task.name": "the scores of trials would be of different tasks",
    "task.primary": "the scores of trials would be different metrics",
    "task.metrics": "no score depends on it",
    "evaluate": "no score depends on it",
    "run": "a search over seeds and machines finds luck",
    "tune": "a search does not search its own settings",
}


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    low: int | float
    high: int | float
    step: int | float | None = None  # between two values, from low on; None takes every number
    log: bool = False  # draw the logarithm evenly; needs low above 0

    def __post_init__(self) -> None:
        """Check the bounds. Raises ValueError."""
        if any(isinstance(v, bool) for v in (self.low, self.high, self.step)):
            raise ValueError("low, high and step are numbers; give true and false as a list of choices")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together: remove one of them")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, not {self.step}")
        if self.step is not None and (_exact(self.high) - _exact(self.low)) % _exact(self.step):
            raise ValueError(f"high must be low plus whole steps of {self.step}, not {self.high}")

    @property
    def whole(self) -> bool:
        """Return whether the range holds whole numbers alone."""
        return all(isinstance(v, int) for v in (self.low, self.high, self.step) if v is not None)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the least and the greatest value."""
        return self.low, self.high


@dataclass(frozen=True)
class Choices:
    """A list of values, of which a trial takes one."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError."""
        if len(self.values) < 2:
            raise ValueError("a list needs two choices or more; set the key itself to a single value")
        if not all(isinstance(v, str | int | float | bool) for v in self.values):
            raise ValueError("choices are texts, numbers, true or false")
        if len(set(self.values)) < len(self.values):
            raise ValueError("a choice is there twice: remove one of them")

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return every choice: each must be a value that the key takes."""
        return self.values


Ranges = dict[str, Range | Choices]  # dotted key of the plan → its values


def read_ranges(tree: Mapping[str, Any], check: Callable[[Tree], list[str]]) -> tuple[Ranges, list[Problem]]:
    """Return the ranges of a plan's plain values, less those with a problem, and every problem.

    ``check`` returns why a plan without ``[tune]`` cannot be used.
    """
    ranges: Ranges = {}
    problems: list[Problem] = []
    base = {k: v for k, v in tree.items() if k != "tune"}
    named = tree["tune"].get("ranges", {}) if isinstance(tree.get("tune"), dict) else {}
    for key, given in named.items() if isinstance(named, dict) else ():
        where = f"tune.ranges.{key}"
        made, found = _one(key, given, where)
        if made is not None:
            made, found = _fitted(made, key, base, where, check)
        problems += [(where, text) for text in found]
        if made is not None and not found:
            ranges[key] = made
    if not problems and len(ranges) > 1:
        problems = _refused_together(ranges, base, check)
    return ranges, problems


def with_values(tree: Mapping[str, Any], values: Mapping[str, Value]) -> Tree:
    """Return a plan's plain values with other values by dotted key, and without ``[tune]``.

    Raises ValueError where a key lies in a value.
    """
    new = {k: copy.deepcopy(v) for k, v in tree.items() if k != "tune"}
    for key, value in values.items():
        *tables, name = key.split(".")
        place = new
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ValueError(f"{key} lies in {table}, which is a value")
        place[name] = value
    return new


def _one(key: str, given: Any, where: str) -> tuple[Range | Choices | None, list[str]]:
    """Return the range that a plan gives for a key, or None and what is wrong with it."""
    table = key.partition(".")[0]
    if (why := NOT_SEARCHED.get(key) or NOT_SEARCHED.get(table)) is not None:
        return None, [f"{where}: {key} is not searched, because {why}: remove it"]
    if "." not in key:
        return None, [f'{where}: name a key with its table, as "fit.lr"']
    if isinstance(given, list):
        try:
            return Choices(tuple(given)), []
        except (ValueError, TypeError) as error:
            return None, [f"{where}: {error}"]
    if isinstance(given, dict):
        made, found = plugins.make(Range, given, where)
        return made, found
    return None, [f"{where}: give {{ low = …, high = … }} or a list of choices"]


def _fitted(
    made: Range | Choices, key: str, base: Tree, where: str, check: Callable[[Tree], list[str]]
) -> tuple[Range | Choices, list[str]]:
    """Return the range as whole numbers or not, as its key takes them, and why the key refuses its values."""

    def refused(value: Value) -> list[str]:
        try:
            return check(with_values(base, {key: value}))
        except ValueError as error:
            return [str(error)]

    for value in made.ends:
        if found := refused(value):
            shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
            return made, [f"{where}: {shown} is refused: {text}" for text in found]
    if isinstance(made, Range) and not (made.whole and refused(made.low + 0.5)):
        step = None if made.step is None else float(made.step)
        made = replace(made, low=float(made.low), high=float(made.high), step=step)
        if found := refused(made.low + (made.high - made.low) / 3):
            return made, [f"{where}: numbers between low and high are refused: {text}" for text in found]
    return made, []


def _refused_together(ranges: Ranges, base: Tree, check: Callable[[Tree], list[str]]) -> list[Problem]:
    """Return why all first, or all last values of the ranges are refused where each alone is taken."""
    for values in _corners(ranges):
        if found := check(with_values(base, values)):
            together = ", ".join(f"{key} = {value}" for key, value in values.items())
            return [("tune.ranges", f"tune.ranges: together ({together}) they are refused: {text}") for text in found]
    return []


def _corners(ranges: Ranges) -> Iterator[dict[str, Value]]:
    yield {key: made.ends[0] for key, made in ranges.items()}
    yield {key: made.ends[-1] for key, made in ranges.items()}


def _exact(number: int | float) -> Decimal:
    return Decimal(str(number))
