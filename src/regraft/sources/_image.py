"""Picture specification of a recipe's plain values, and the change of its channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_type_hints

from ..data.types import ImageSpec
from ..errors import SourceError

MAX_SIDE_PIXELS = 4096  # pixels; the proof of a split would take too much memory for larger pictures


def from_recipe(values: dict[str, Any]) -> ImageSpec:
    """Return the picture specification of plain values. Raises SourceError for values that no picture has."""
    resize = values["resize"]
    sides = [*values["size"], *([resize] if isinstance(resize, int) else resize)]
    if not all(type(side) is int and 1 <= side <= MAX_SIDE_PIXELS for side in sides):
        raise SourceError(f"pictures of {values['size']} from {resize} pixels are no picture size")
    if values["interpolation"] not in get_args(get_type_hints(ImageSpec)["interpolation"]):
        raise SourceError(f'there is no interpolation "{values["interpolation"]}"')
    numbers = [*values["mean"], *values["std"]]
    finite = all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
    if not finite or len(values["mean"]) != len(values["std"]) or not all(values["std"]):
        raise SourceError(f"mean {values['mean']} and std {values['std']} normalise no picture")
    return ImageSpec(
        size=(values["size"][0], values["size"][1]),
        resize=resize if isinstance(resize, int) else (resize[0], resize[1]),
        interpolation=values["interpolation"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def with_channels(spec: ImageSpec, channels: int) -> tuple[ImageSpec, str]:
    """Return the specification for another number of channels, and a note on the change.

    One channel has the mean of the means and of the deviations. Added channels have 0.5.
    """
    if channels == spec.channels:
        return spec, ""
    if channels == 1:
        mean: tuple[float, ...] = (sum(spec.mean) / spec.channels,)
        std: tuple[float, ...] = (sum(spec.std) / spec.channels,)
    elif channels > spec.channels:
        rest = (0.5,) * (channels - spec.channels)
        mean, std = spec.mean + rest, spec.std + rest
    else:
        raise SourceError(f"{channels} picture channels; remedy: 1, {spec.channels} or more")
    note = f"stem adapted from {spec.channels} to {channels} channels; mean {mean}, std {std}"
    return dataclasses.replace(spec, mean=mean, std=std), note
