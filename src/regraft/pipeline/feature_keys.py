"""The key of cached features: weights, rows and all that the outputs depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.store import SCHEMA, raw_bytes

if TYPE_CHECKING:
    from torch import nn

    from ..model.types import Block


def key_of(backbone: nn.Module, blocks: Sequence[Block], what: Mapping[str, Any]) -> str:
    """sha256 of the blocks' tensors, as they now are, and of ``what``, which is plain JSON."""
    tensors = dict([*backbone.named_parameters(), *backbone.named_buffers()])
    found = hashlib.sha256(json.dumps({"schema": SCHEMA, **what}, sort_keys=True).encode())
    for name in (n for b in blocks for n in b.tensors):
        value = tensors[name].detach()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(raw_bytes(value))
    return found.hexdigest()
