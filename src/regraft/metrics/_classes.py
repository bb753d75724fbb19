"""Sums of row weights by class, in time and memory linear in the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compute.arrays import FloatArray


def sums_by(numbers: Any, size: int) -> Callable[[FloatArray], FloatArray]:
    """Return a function of weights [N, R] that gives their sums [size, R] by the rows' numbers [N]."""
    from scipy.sparse import csr_array

    n = len(numbers)
    member = csr_array((np.ones(n), (numbers, np.arange(n))), shape=(size, n))

    def sums(by_row: FloatArray) -> FloatArray:
        result: FloatArray = member @ by_row
        return result

    return sums
