"""Sums of row weights by class, in time and memory linear in the rows."""

from __future__ import annotations

from typing import Any

import numpy as np


def membership(numbers: Any, size: int) -> Any:
    """Return the sparse matrix [size, N] that sums weights [N, R] by the rows' numbers [N]: matrix @ weights."""
    from scipy.sparse import csr_array

    n = len(numbers)
    return csr_array((np.ones(n), (numbers, np.arange(n))), shape=(size, n))
