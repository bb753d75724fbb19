"""Limits on the network that a config describes, checked before the network takes memory.

The weights file says how large the network can be. A config that describes far more does not belong to it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..errors import SourceError

MAX_REPEATS = 1_000  # of a count in a config: layers, blocks, stages

MAX_SUM = 10_000  # of the counts in one list, which may be numbers of layers

MAX_LABELS = 1_000_000  # class names, which a config creates when it is read

COUNTS = re.compile(r"layer|depth|block|repeat|stage|hash|attention_types")

SIZES = re.compile(r"size$|size_|dim|width|channel|token|length|rank|bucket")  # names of sizes, which are no counts

SPARE_TENSORS = 2_000  # allowed beyond the file's, for heads and poolers that the file lacks

SPARE_VALUES = 2**26  # 256 MB in float32


@dataclass(frozen=True)
class Size:
    """Number of tensors and values in a weights file."""

    tensors: int
    values: int


UNKNOWN = Size(50_000, 2**36)  # assumed without a weights file


def size_of(tensors: Mapping[str, Tensor]) -> Size:
    """Return the size of these tensors."""
    return Size(len(tensors), sum(t.numel() for t in tensors.values()))


def size_in(path: Path) -> Size:
    """Return the size of a safetensors file from its header, or UNKNOWN for anything else."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return Size(len(names), sum(prod(file.get_slice(n).get_shape()) for n in names))
    except (OSError, SafetensorError):
        return UNKNOWN


def check_counts(values: Any, reference: str, key: str = "") -> None:
    """Raise SourceError for a config, or a part of it, with a count that no network has."""
    if isinstance(values, dict):
        for name, value in values.items():
            check_counts(value, reference, str(name))
    elif isinstance(values, list):
        for value in values:
            check_counts(value, reference, key)
        whole = sum(v for v in values if isinstance(v, int))
        if counted(key) and whole > MAX_SUM:
            raise SourceError(
                f"{reference}: its config cannot be built: {key} is {whole:,} in all, and {MAX_SUM:,} is "
                "the most that regraft builds"
            )
    elif isinstance(values, int) and not isinstance(values, bool):
        limit = MAX_REPEATS if counted(key) else MAX_LABELS if key.endswith("num_labels") else None
        if limit is not None and values > limit:
            raise SourceError(
                f"{reference}: its config cannot be built: {key} is {values:,}, and {limit:,} is the "
                "most that regraft builds"
            )


def counted(key: str) -> bool:
    """Return whether a value of a config says how often something is built or run."""
    return bool(COUNTS.search(key)) and not SIZES.search(key)


@contextmanager
def bounded(size: Size, reference: str, *, memory: bool = False) -> Iterator[None]:
    """Raise SourceError as soon as a network that is built inside has far more tensors than the file.

    A count that no rule knows by name thus costs a second at most. With ``memory`` values are limited too, for a
    network that takes memory while it is built. They are counted before anything is written to them. They are counted
    again each time a module takes a tensor, so tied tensors count more than once.
    """
    most, most_values = 3 * size.tensors + SPARE_TENSORS, 4 * size.values + 2 * SPARE_VALUES
    thread, parameters, modules, values = threading.get_ident(), 0, 0, 0

    def count(parent: nn.Module, name: str, item: Any) -> None:
        nonlocal parameters, modules, values
        if threading.get_ident() != thread or item is None:
            return
        is_module = isinstance(
            item, torch_module.Module
        )  # test the type, because a module may have an attribute "shape" too
        modules, parameters = modules + is_module, parameters + (not is_module)
        values += item.numel() if memory and not is_module else 0
        if values > most_values:
            raise too_large(reference, f"more than {most_values:,} values", size.values)
        if parameters > most or modules > 10 * most:
            raise too_large(reference, f"more than {most:,} tensors", size.tensors)

    handles = (
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_size(net: nn.Module, size: Size, reference: str) -> None:
    """Raise SourceError where a network on the meta device is far larger than its weights."""
    values = sum(p.numel() for p in net.parameters())
    if values > 2 * size.values + SPARE_VALUES:
        raise too_large(reference, f"{values:,} values ({values * 4 / 1e9:,.1f} GB)", size.values)


def too_large(reference: str, described: str, held: int) -> SourceError:
    """Return the error for a config whose network is larger than its weights file."""
    return SourceError(
        f"{reference}: its config describes a network of {described}, and the weights file holds {held:,}: "
        "the config does not belong to the weights"
    )
