"""Figures as the cells of a table."""

from __future__ import annotations

from math import isnan

from ..runs import summary
from ..runs.estimates import Estimate


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash if it is undefined."""
    return "–" if value is None or isnan(value) else f"{value:.{digits}f}"


def estimate(e: Estimate | None) -> str:
    """Return a figure with its interval, or a dash if it is undefined."""
    return "–" if e is None else summary.estimate(e)


def signed(e: Estimate | None) -> str:
    """Return a gain with its interval, each number with its sign, or a dash if it is undefined."""
    return "–" if e is None else summary.signed(e)
