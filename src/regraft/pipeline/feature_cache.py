"""Outputs of frozen blocks, kept in the feature cache where that is quicker than to compute them.

Every use is guarded: one random batch is computed too. Where it differs from the cache, all are computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..compute import distributed
from ..compute.arrays import map_inputs
from ..compute.versions import __version__
from ..data.batches import Batches, map_batches
from ..data.columns import ids_of
from ..data.preprocessing import to_json
from ..data.readers import TextReader
from ..data.store import MASK, SCHEMA, Entry, FeatureCache, NotStorableError, cache_in, raw_bytes, split_rows
from ..data.types import CallableSpec
from ..io.log import LOGGER
from ..io.progress import stage
from ..model.trainable import eval_mode

if TYPE_CHECKING:
    from torch import nn

    from ..compute.arrays import Inputs
    from ..compute.device import Compute
    from ..model.types import Block, Source
    from ..plan.schema import RunPlan
    from .target_data import Memo


READ_BYTES_S = 500e6  # bytes a second that a mapped file is taken to give

PARTS = ("torch", "torchvision", "Pillow", "timm", "transformers")  # packages that outputs depend on

PICK = random.SystemRandom()  # picks the batch that is checked, so that no seed of a run is drawn from


@dataclass(frozen=True)
class LowerBlocks:
    """The blocks of a backbone below a cut: inputs → the output of the last of them."""

    source: Source
    compute: Compute
    backbone: nn.Module
    cut: int  # blocks; all of them give the features
    precision: str

    def __call__(self, inputs: Inputs) -> Any:
        """Compute the output on the device, without gradient, and return it on the CPU."""
        blocks = self.source.blocks
        x: Any = self.compute.to_device(inputs)
        with eval_mode(self.backbone), torch.inference_mode(), self.compute.autocast(self.precision):
            if self.cut == len(blocks):
                x = self.backbone(x)
            else:
                for block in blocks[: self.cut]:
                    assert block.run is not None
                    x = block.run(self.backbone, x)
        return map_inputs(torch.Tensor.cpu, x)

    def key(self, batches: Batches, view: int) -> str:
        """Return the key of all that the outputs of these batches depend on, to the last bit."""
        augment = batches.reader.augment
        what = {
            "cut": self.cut,
            "recipe": self.source.recipe,
            "preprocess": to_json(self.source.preprocess),
            "rows": list(ids_of(batches.examples)),
            "tokens": tokens_digest(batches),
            "view": [batches.order.seed, view, asdict(augment)] if view and augment else 0,
            "batch_size": batches.order.batch_size,
            "layout": self.compute.layout,
            "precision": self.precision,
            "device": str(self.compute.device),
            "threads": torch.get_num_threads(),
            "versions": {"regraft": __version__, **{name: version(name) for name in PARTS}},
        }
        return key_of(self.backbone, self.source.blocks[: self.cut], what)


def key_of(backbone: nn.Module, blocks: Sequence[Block], what: Mapping[str, Any]) -> str:
    """Return the sha256 of the blocks' tensors, as they now are, and of ``what``, which is plain JSON."""
    tensors = dict([*backbone.named_parameters(), *backbone.named_buffers()])
    digest = hashlib.sha256(json.dumps({"schema": SCHEMA, **what}, sort_keys=True).encode())
    for name in (n for b in blocks for n in b.tensors):
        value = tensors[name].detach()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()


def tokens_digest(batches: Batches) -> str | None:
    """Return the sha256 of a text's tokens, which decide all about the tokenizer and its cut."""
    if not isinstance(batches.reader, TextReader):
        return None
    tokens = batches.reader.tokens
    digest = hashlib.sha256(json.dumps(tokens.ends.tolist()).encode())
    for name, flat in sorted(tokens.flat.items()):
        digest.update(name.encode() + flat.astype(np.int32).tobytes())
    return digest.hexdigest()


def cache_of(run: RunPlan, source: Source) -> FeatureCache | None:
    """Return the plan's cache; None where it is off, or preprocessing is a function, which has no digest."""
    if run.cache == "off" or isinstance(source.preprocess, CallableSpec):
        return None
    return cache_in(run.cache, run.cache_users, int(run.cache_gb * 1e9))


@dataclass(frozen=True)
class CachedOutputs:
    """The cache of a job, and what was decided for each of its keys."""

    cache: FeatureCache | None
    memo: Memo
    level: int = logging.DEBUG  # of the lines that report a decision

    def note(self, line: str) -> None:
        """Report a line."""
        LOGGER.log(self.level, "%s", line)

    def entries(
        self, below: LowerBlocks, batches: Batches, views: Sequence[int], *, passes: int | None, what: str
    ) -> list[Entry] | None:
        """Return the outputs of all rows, one entry a view, from the cache or written to it now.

        Return None where computing them is the better choice, which is reported. A cache saves ``passes``
        over all rows; None: as many as one likes to. The decision holds for later seeds, and for a run that
        is resumed.
        """
        cache, memo = self.cache, self.memo
        if cache is None:
            return None
        keys = [below.key(batches, view) for view in views]
        if all(key in memo.entries for key in keys):
            return [memo.entries[key] for key in keys]
        if memo.decisions.get(keys[0]) == "live":
            return None
        found, failed = {}, ""
        try:
            found = {key: cache.open(key) for key in keys}
        except OSError as error:
            failed = str(error)
        # together: ranks that can use an entry would wait for one that cannot
        if failed := next(filter(None, distributed.gather_objects([failed])), ""):
            self._live(keys[0], what, f"the feature cache cannot be used: {failed}")
            return None
        tried = PICK.randrange(len(views))
        began = time.perf_counter()
        ids, inputs, _ = next(batches.deal(PICK.randrange(batches.count), batches.count, views[tried]))
        live = below(inputs)
        seconds = (time.perf_counter() - began) * len(batches) / len(ids)
        absent = distributed.all_reduce_sum(*(float(found[key] is None) for key in keys))
        missing = [view for view, n in zip(views, absent, strict=True) if n]
        try:
            parts, _ = split_rows(live, len(ids))
            size = sum(v.numel() * v.element_size() for v in parts.values()) * len(batches) // len(ids)
            undecided = missing and keys[0] not in memo.decisions
            why = no_gain(cache, seconds, size, len(missing), passes) if undecided else ""
            if why := distributed.broadcast(why):
                self._live(keys[0], what, why)
                return None
            for view, key in zip(views, keys, strict=True):
                if view in missing:
                    known = {ids: live} if view == views[tried] else {}
                    found[key] = write_entry(cache, key, below, batches, view, known, what)
        except (OSError, NotStorableError) as error:
            self._live(keys[0], what, f"the feature cache cannot hold it: {error}")
            return None
        taken = [entry for key in keys if (entry := found[key]) is not None]
        if distributed.any_rank(not all(holds(e, batches) for e in taken)) or distributed.any_rank(
            not close(taken[tried].batch(ids), live)
        ):
            self._live(keys[0], what, "what the feature cache holds differs from it")
            return None
        memo.entries.update(zip(keys, taken, strict=True))
        memo.decisions[keys[0]] = "kept"
        where = "kept for later in" if missing else "from"
        of = f" x {len(views)} views" if len(views) > 1 else ""
        size *= len(views)
        self.note(f"{what}: {len(batches)} rows{of} {where} the feature cache ({size / 1e6:.1f} MB)")
        return taken

    def _live(self, key: str, what: str, why: str) -> None:
        """Report that rows are computed, and why; the decision holds for their key."""
        self.memo.decisions[key] = "live"
        self.note(f"{what}: computed live, {why}")


def write_entry(
    cache: FeatureCache,
    key: str,
    below: LowerBlocks,
    batches: Batches,
    view: int,
    known: Mapping[tuple[str, ...], Any],
    what: str,
) -> Entry:
    """Compute the entry of a view on all ranks, and write it on rank 0. ``known`` are batches that were
    computed before, by their ids.

    Raises OSError where a rank does not see the entry afterwards, and as ``FeatureCache.write``.
    """
    computed = map_batches(batches, lambda ids, inputs, _: (ids, known[ids] if ids in known else below(inputs)), view)
    rows = stage(what, len(batches)).over(computed, lambda batch: len(batch[0]))
    entry, failed = None, ""
    if distributed.rank() == 0:
        try:
            entry = cache.write(key, rows)
        except (OSError, NotStorableError) as error:
            if distributed.world_size() == 1:
                raise
            failed = str(error)
    for _ in rows:  # rank 0 has written them, or could not; other ranks compute their part here
        pass
    if failed := distributed.broadcast(failed):
        raise OSError(failed)
    entry = entry or cache.open(key)
    if distributed.any_rank(entry is None):
        raise OSError(f"not every process sees {cache.root}")
    assert entry is not None
    return entry


def no_gain(cache: FeatureCache, seconds: float, size: int, missing: int, passes: int | None) -> str:
    """Return why writing ``missing`` passes of ``size`` bytes and ``seconds`` each is not worth it; or ""."""
    there = next((d for d in (cache.root, *cache.root.parents) if d.is_dir()), Path.cwd())
    room = min(cache.limit, shutil.disk_usage(there).free // 2)
    if size * missing > room:
        return f"since its {size * missing / 1e6:,.0f} MB are more than the {room / 1e6:,.0f} there are"
    reading = size / READ_BYTES_S
    if passes is not None and passes * (seconds - reading) <= missing * (seconds + reading):
        return f"since to keep it takes {missing} passes and saves {passes}"
    return ""


def holds(entry: Entry, batches: Batches) -> bool:
    """Return whether an entry has every row of the batches."""
    return all(e.id in entry.place for e in batches.examples)


def close(cached: Inputs, live: Inputs) -> bool:
    """Return whether two outputs are equal to rounding, of texts where there are tokens."""
    if isinstance(cached, torch.Tensor) or isinstance(live, torch.Tensor):
        pairs = [(cached, live)]
    else:
        mask = live.get(MASK)
        every = mask.bool() if mask is not None else slice(None)
        if set(cached) != set(live) or any(cached[n].shape != live[n].shape for n in live):
            return False
        pairs = [(cached[n][every], live[n][every]) for n in live]
    return all(_close(a, b) for a, b in pairs)


def _close(cached: object, live: object) -> bool:
    if not isinstance(cached, torch.Tensor) or not isinstance(live, torch.Tensor):
        return False
    if cached.shape != live.shape or cached.dtype != live.dtype:
        return False
    rtol = 1e-2 if live.dtype == torch.bfloat16 else 1e-4
    atol = rtol * (1e-6 + float(live.abs().max()))
    return torch.allclose(cached.float(), live.float(), rtol=rtol, atol=atol)
