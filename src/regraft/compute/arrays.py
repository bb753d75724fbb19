"""Types of arrays and tensors.

Shapes: B rows of a batch, N rows of a split, D features, C outputs (classes, labels or numbers),
R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Inputs = Tensor | dict[str, Tensor]  # [B, …], or tensors by name (texts)
    FloatArray = NDArray[np.float64]


Kind = Literal["image", "text", "tensor"]

Targets = Literal["class", "labels", "numbers"]  # a row has one class, any number of labels, or C numbers


def map_inputs(fn: Callable[[Tensor], Any], inputs: Any) -> Any:
    """Return ``fn(tensor)`` of the inputs, or of each tensor of a dictionary by its name."""
    return {name: fn(tensor) for name, tensor in inputs.items()} if isinstance(inputs, dict) else fn(inputs)
