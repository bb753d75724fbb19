"""Tensors in safetensors files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiskError
from ..io.atomic import sync_file

if TYPE_CHECKING:
    from torch import Tensor


def storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU, because safetensors refuses tensors that share memory."""
    return {n: t.detach().cpu().contiguous().clone() for n, t in state.items()}


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file and sync it. Raises DiskError with the bytes needed and the bytes free."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    values = storable(tensors)
    try:
        save_file(values, path, metadata)
        sync_file(path)
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        size = sum(t.numel() * t.element_size() for t in values.values())
        free = shutil.disk_usage(path.parent).free
        raise DiskError(f"{path} cannot be written: it takes {size:,} bytes and {free:,} are free ({error})") from error
