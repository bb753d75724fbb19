"""Memory layout and precision by a short measurement, on a few of the user's own rows.

Candidates take turns and the least time of each counts: what else a machine does only adds to it.
Channels-last is for backbones with convolutions, where it is faster at all; bfloat16 where it is at
least 15 % faster than float32. What was measured is kept beside the feature cache, by model, sizes,
device and versions, and is frozen into the saved plan, so that a saved plan needs no measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from heapq import nsmallest
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..compute import distributed
from ..compute.arrays import map_inputs
from ..compute.device import Compute
from ..data.columns import ids_of, some_of
from ..data.preprocessing import to_json
from ..data.store import place_of
from ..data.types import ImageSpec
from ..errors import DiskError
from ..io.atomic import write_file
from ..io.locks import open_regular
from ..io.work_folders import is_own, work_folder
from ..model.trainable import eval_mode

if TYPE_CHECKING:
    from ..compute.arrays import Inputs
    from ..data.preprocessing import Preprocessor
    from ..data.types import Example
    from ..model.types import Source
    from ..plan.schema import RunPlan
    from .resolve import Reasons


ROWS = 6  # that are timed at once

ROUNDS = 3

FEWEST = 500  # rows that go through the backbone: fewer are done before a measurement pays

FASTER = 0.85  # bfloat16's time over float32's, at most

Way = tuple[str, str]  # layout, precision


def settle(
    run: RunPlan,
    source: Source,
    preprocessor: Preprocessor,
    examples: Sequence[Example],
    device: torch.device,
    *,
    passes: int,
    trains: bool,
) -> tuple[RunPlan, Reasons]:
    """Return the plan's [run] with layout and precisions chosen, and the reasons.

    ``passes`` over the rows are to come; ``trains`` says whether the backbone trains in them.
    """
    open_keys = [k for k in ("layout", "precision", "feature_precision") if getattr(run, k) == "auto"]
    if not open_keys:
        return run, {}
    conv = any(
        isinstance(m, torch.nn.Conv2d) and max(m.kernel_size) <= 7 and m.in_channels > 3
        for m in source.backbone.modules()
    )
    chosen: dict[str, str] = {}
    why: dict[str, str] = {}
    if len(examples) * passes < FEWEST or source.kind == "tensor" or run.shard:
        usual = "channels_last" if conv and not run.shard else "contiguous"
        chosen = {"layout": usual, "precision": "float32", "feature_precision": "float32"}
        few = f"fewer than {FEWEST} rows to compute: not measured"
        if source.kind == "tensor":
            few = "rows of one's own"
        elif run.shard:
            few = "weights are divided: not measured"
        why = dict.fromkeys(chosen, few)
    else:
        layouts = [run.layout] if run.layout != "auto" else ["contiguous", "channels_last"]
        ways = [(x, "float32") for x in (layouts if conv else layouts[:1])]
        ways += [(ways[-1][0], "bfloat16")]
        times = measured(run, source, preprocessor, examples, device, ways, train=False)
        chosen["layout"], why["layout"] = best_layout(times, conv)
        chosen["feature_precision"], why["feature_precision"] = best_precision(times, chosen["layout"], "features")
        if trains:
            layout = chosen["layout"] if run.layout == "auto" else run.layout
            ways = [(str(layout), p) for p in ("float32", "bfloat16")]
            times = measured(run, source, preprocessor, examples, device, ways, train=True)
            chosen["precision"], why["precision"] = best_precision(times, str(layout), "a step")
        else:
            # one pass of features serves the probe and every step
            chosen["precision"] = chosen["feature_precision"]
            if run.feature_precision != "auto":
                chosen["precision"] = run.feature_precision
            why["precision"] = "as the features: the backbone does not train"
    update = {k: chosen[k] for k in open_keys}
    return run.model_copy(update=update), {f"run.{k}": f"auto: {why[k]}" for k in open_keys}


def best_layout(times: Mapping[Way, float], conv: bool) -> tuple[str, str]:
    plain, last = times.get(("contiguous", "float32")), times.get(("channels_last", "float32"))
    if not conv:
        return "contiguous", "no convolutions above the first layer"
    if plain is None or last is None:
        return ("contiguous" if last is None else "channels_last"), "as asked"
    ratio = f"measured {1e3 * plain:.0f} ms a row contiguous, {1e3 * last:.0f} channels-last"
    return ("channels_last" if last < plain else "contiguous"), ratio


def best_precision(times: Mapping[Way, float], layout: str, what: str) -> tuple[str, str]:
    full, half = times[layout, "float32"], times.get((layout, "bfloat16"))
    if half is None:
        return "float32", "bfloat16 does not work here"
    faster = half <= FASTER * full
    text = f"{what} measured {1e3 * full:.1f} ms a row in float32, {1e3 * half:.1f} in bfloat16"
    return ("bfloat16" if faster else "float32"), text + ("" if faster else ": under 15 % faster")


def measured(
    run: RunPlan,
    source: Source,
    preprocessor: Preprocessor,
    examples: Sequence[Example],
    device: torch.device,
    ways: Sequence[Way],
    *,
    train: bool,
) -> dict[Way, float]:
    """Return seconds a row of each way, from an earlier measurement or a new one, without ways that fail."""
    first = nsmallest(ROWS, enumerate(ids_of(examples)), key=lambda row: row[1])
    some = some_of(examples, [i for i, _ in first])
    inputs = preprocessor.collate([preprocessor.one(e.inputs) for e in some])
    key = key_of(run, source, inputs, device, train)
    kept: Mapping[str, float | None] = distributed.broadcast(recall(run, key))
    names = {way: "/".join(way) for way in ways}
    if not all(n in kept for n in names.values()):
        found = distributed.broadcast(timed(source, inputs, device, ways, len(some), train))
        kept = {names[w]: s for w, s in found.items()}
        remember(run, key, kept)
    return {way: s for way, n in names.items() if (s := kept.get(n)) is not None}


def timed(
    source: Source, inputs: Inputs, device: torch.device, ways: Sequence[Way], rows: int, train: bool
) -> dict[Way, float | None]:
    """Return the least seconds a row of a forward pass, and of a backward pass too if ``train``."""
    import copy

    backbone = copy.deepcopy(source.backbone).to(device)
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    failed: set[Way] = set()
    with eval_mode(backbone), torch.set_grad_enabled(train):
        for _ in range(ROUNDS + 1):  # the first of each also allocates
            for way in ways:
                if way in failed:
                    continue
                try:
                    seconds[way].append(once(backbone, inputs, device, way, train))
                except (RuntimeError, NotImplementedError):  # no such kernel
                    if way[1] == "float32":
                        raise
                    failed.add(way)
    return {w: None if w in failed else min(s[1:]) / rows for w, s in seconds.items()}


def once(backbone: torch.nn.Module, inputs: Inputs, device: torch.device, way: Way, train: bool) -> float:
    layout, precision = way
    compute = Compute(device, layout, precision)
    if layout == "channels_last":
        backbone.to(memory_format=torch.channels_last)
    else:
        backbone.to(memory_format=torch.contiguous_format)
    x = compute.to_device(inputs)
    synchronize(device)
    began = time.perf_counter()
    with compute.autocast():
        features = backbone(x)
    if train:
        features.float().square().mean().backward()
        backbone.zero_grad(set_to_none=True)
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------- what was measured before


def key_of(run: RunPlan, source: Source, inputs: Inputs, device: torch.device, train: bool) -> str:
    shapes = map_inputs(lambda tensor: list(tensor.shape), inputs)
    what = {
        "recipe": source.recipe,
        "preprocess": to_json(source.preprocess) if isinstance(source.preprocess, ImageSpec) else shapes,
        "parameters": sum(p.numel() for p in source.backbone.parameters()),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "train": train,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def memory_file(run: RunPlan) -> Path | None:
    return None if run.cache == "off" else place_of(run.cache).parent / "speed.json"


def known_of(run: RunPlan, path: Path) -> dict[str, dict[str, float | None]]:
    """Return all that was measured. Raises OSError for a file that is another user's, or does not read."""
    if run.cache_users == "own" and not is_own(path.lstat()):
        raise PermissionError(f"{path} is another user's")
    handle = open_regular(path, os.O_RDONLY)
    with os.fdopen(handle, encoding="utf-8") as file:
        try:
            found = json.load(file)
            return {
                str(key): {str(k): s if s is None else float(s) for k, s in times.items()}
                for key, times in found.items()
            }
        except (ValueError, TypeError, AttributeError, RecursionError):
            return {}  # damaged: it is written anew


def recall(run: RunPlan, key: str) -> dict[str, float | None]:
    path = memory_file(run)
    with suppress(OSError):
        if path is not None:
            return known_of(run, path).get(key, {})
    return {}


def remember(run: RunPlan, key: str, times: Mapping[str, float | None]) -> None:
    """Write a measurement beside the feature cache. Of several writers the last one wins; a lost one is repeated."""
    path = memory_file(run)
    if path is None or not distributed.is_rank0():
        return
    with suppress(OSError, DiskError):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = known_of(run, path) if path.exists() else {}
        with work_folder(path.parent, "speed") as folder:
            write_file(path, json.dumps(known | {key: known.get(key, {}) | dict(times)}), folder / path.name)
