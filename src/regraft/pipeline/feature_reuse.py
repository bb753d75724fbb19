"""Nothing is computed twice: what lies below the lowest trainable block comes from the feature cache.

Every use is guarded: a random batch is computed live too, and where the two differ, live is used
and said.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..compute import distributed
from ..compute.arrays import map_inputs
from ..compute.versions import __version__
from ..data.batches import Batches, map_batches
from ..data.columns import ids_of, some_of
from ..data.image_store import keep
from ..data.preprocessing import to_json
from ..data.readers import TextReader
from ..data.store import MASK, Entry, FeatureCache, NotStorableError, cache_in, taken_apart
from ..data.types import CallableSpec
from ..evidence.frontier import ALPHAS
from ..freezing import Adapting
from ..io.progress import stage
from ..model.forward import Outputs, outputs
from ..model.trainable import eval_mode
from ..training.records import PhaseData
from ..training.unfreezing import lowest_trainable
from .feature_keys import key_of

if TYPE_CHECKING:
    from torch import nn

    from ..compute.arrays import Inputs
    from ..data.batches import LabelledBatch
    from ..data.types import Augment
    from ..io.streams import Report
    from ..model.types import Target
    from ..regularizers import Penalty
    from ..training.settings import FitSpec
    from .prepare import Prepared


READ = 500e6  # bytes a second that a mapped file is taken to give

PARTS = ("torch", "torchvision", "Pillow", "timm", "transformers")  # what outputs depend on

PICK = random.SystemRandom()  # of the batch that is checked: no seed of a run is drawn from

DECISION = "how"  # (HOW, key) in Prepared.kept → "live" or "kept"

Wrap = Callable[[Batches], Batches]


class Reused(Batches):
    """Batches in the same order whose inputs are what the blocks below a cut make of them.

    Epoch n takes view (n − 1) mod K of each row.
    """

    def __init__(self, of: Batches, views: Sequence[Entry]) -> None:
        super().__init__(of.rows, of.reader, of.order, of.compute)
        self.views = views

    def _read(self, batches: list[list[int]], augment: Augment | None, epoch: int) -> Iterator[LabelledBatch]:
        entry = self.views[max(0, epoch - 1) % len(self.views)]
        for batch in batches:
            places = [d % len(self) for d in batch]
            ids = tuple(ids_of(some_of(self.examples, places)))
            yield ids, entry.batch(ids), self.rows.targets[places]


@dataclass(frozen=True)
class LowerBlocks:
    """The blocks of a backbone below a cut: inputs → the output of the last of them."""

    p: Prepared
    backbone: nn.Module
    cut: int  # blocks; all of them give the features
    precision: str

    def __call__(self, inputs: Inputs) -> Any:
        """On the CPU, without gradient."""
        blocks = self.p.source.blocks
        x: Any = self.p.compute.to_device(inputs)
        with eval_mode(self.backbone), torch.inference_mode(), self.p.compute.autocast(self.precision):
            if self.cut == len(blocks):
                x = self.backbone(x)
            else:
                for block in blocks[: self.cut]:
                    assert block.run is not None
                    x = block.run(self.backbone, x)
        return map_inputs(torch.Tensor.cpu, x)

    def key(self, batches: Batches, view: int) -> str:
        """Of all that the outputs of these batches depend on, to the last bit."""
        p, augment = self.p, batches.reader.augment
        what = {
            "cut": self.cut,
            "recipe": p.source.recipe,
            "preprocess": to_json(p.source.preprocess),
            "rows": list(ids_of(batches.examples)),
            "tokens": tokens_digest(batches),
            "view": [batches.order.seed, view, asdict(augment)] if view and augment else 0,
            "batch_size": batches.order.batch_size,
            "layout": p.compute.layout,
            "precision": self.precision,
            "device": str(p.compute.device),
            "threads": torch.get_num_threads(),
            "versions": {"regraft": __version__, **{name: version(name) for name in PARTS}},
        }
        return key_of(self.backbone, p.source.blocks[: self.cut], what)


def cache_of(p: Prepared) -> FeatureCache | None:
    """None where the plan switches it off, or preprocessing is a function, which has no digest."""
    if p.plan.run.cache == "off" or isinstance(p.source.preprocess, CallableSpec):
        return None
    run = p.plan.run
    return cache_in(run.cache, run.cache_users, int(run.cache_gb * 1e9))


def features(p: Prepared, split: str, precision: str, say: Report = lambda line: None) -> Outputs:
    """What the source's backbone makes of a split, from the cache where it is there."""
    batches, backbone = p.batches(split), p.source.backbone.to(p.compute.device)
    below = LowerBlocks(p, backbone, len(p.source.blocks), precision)
    found = entries(below, batches, [0], passes=None, what=f"features of {split}", say=say)
    if found is None:
        return outputs(backbone, batches, p.compute, precision)
    ids = tuple(ids_of(batches.examples))
    values = found[0].rows(ids)
    assert isinstance(values, torch.Tensor)
    return Outputs(ids, values.float(), batches.rows.targets.clone())


def phase_data(
    p: Prepared, target: Target, train: Batches, val: Batches | None, spec: FitSpec, *, wrap: Wrap, say: Report
) -> Callable[[int], PhaseData]:
    """Frozen leading blocks → where the rows of the fit come from while they are frozen."""
    live = wrap(train)
    names, freezing, epochs = [b.name for b in target.blocks], spec.freezing, spec.settings.epochs
    cuts = [lowest_trainable(names, freezing(names, e)) for e in range(1, epochs + 1)]
    cache, scratch = cache_of(p), p.scratch
    folds = 0 if p.splits.val else len(p.folds())
    scratches = scratch.epochs * scratch.fits(len(p.seeds), folds) if scratch else 0

    def feed(frozen: int) -> PhaseData:
        found = fed(frozen)
        if found.train is live:
            passes = epochs * len(p.seeds) + scratches
            keep(train, "train", p.splits.train, cache, passes, p.kept, say)
        if val is not None and found.val is val:
            passes = (epochs + len(ALPHAS)) * len(p.seeds) + scratches
            keep(val, "val", p.splits.val, cache, passes, p.kept, say)
        return found

    def fed(frozen: int) -> PhaseData:
        inside = frozen < len(p.source.blocks)
        if (
            not frozen
            or p.plan.run.shard  # divided blocks compute inside the backbone alone
            or isinstance(freezing, Adapting)
            or (inside and any(b.run is None for b in p.source.blocks))
        ):
            return PhaseData(live, val)
        below = LowerBlocks(p, target.model.get_submodule("backbone"), frozen, p.compute.precision)
        passes, seeds = cuts.count(frozen), len(p.seeds)
        judged = None
        if val is not None:
            what = f"val below {names[frozen]}"
            exact = replace(below, precision="float32")  # what is judged
            judged = entries(exact, val, [0], passes=(passes + 1) * seeds, what=what, say=say)
        why, views = views_of(p, train, spec.penalties)
        if why:
            found = None
            if ("said", why) not in p.kept:  # not for every phase and seed
                p.kept["said", why] = True
                say(f"{names[frozen - 1]} and below are frozen, and computed at every step: {why}")
        else:
            again = passes if views != [0] else passes * seeds
            what = f"train below {names[frozen]}"
            found = entries(below, train, views, passes=again, what=what, say=say)
        return PhaseData(
            wrap(Reused(train, found)) if found else live,
            Reused(val, judged) if val is not None and judged else val,
            frozen if found else 0,
            frozen if judged else 0,
        )

    return feed


def views_of(p: Prepared, train: Batches, penalties: Mapping[str, Penalty]) -> tuple[str, list[int]]:
    """(why training rows are no constants, the views of them to keep; 0 is the row as it stands)."""
    if looks := sorted(n for n, q in penalties.items() if q.needs_inputs or q.maps):
        return f"{looks[0]} looks at the inputs", []
    augment = train.reader.augment
    if augment is None or p.source.kind != "image":
        return "", [0]
    if augment.mixup or augment.cutmix:
        return "MixUp and CutMix mix pictures", []
    if not (augment.random_resized_crop or augment.flip or augment.randaugment):
        return "", [0]
    if not p.plan.fit.views:
        return "each epoch augments anew (fit.views = K would keep K views of a picture)", []
    if train.order.strata is not None:
        return "balanced sampling draws a picture several times, each augmented anew", []
    return "", list(range(1, p.plan.fit.views + 1))


def entries(
    below: LowerBlocks, batches: Batches, views: Sequence[int], *, passes: int | None, what: str, say: Report
) -> list[Entry] | None:
    """The outputs of all rows, one entry a view, from the cache or put there now.

    None where live is the better choice, which is said. ``passes`` over all rows are saved; None: as
    many as one likes to. What was chosen holds for later seeds, and for a run that is resumed.
    """
    p, cache = below.p, cache_of(below.p)
    if cache is None:
        return None
    keys = [below.key(batches, view) for view in views]
    if all(key in p.kept for key in keys):
        return [p.kept[key] for key in keys]
    how = (DECISION, keys[0])
    if p.kept.get(how) == "live":
        return None
    found, unusable = {}, ""
    try:
        found = {key: cache.open(key) for key in keys}
    except OSError as error:
        unusable = str(error)
    # as one: what one process cannot use the others would wait to write
    if unusable := next(filter(None, distributed.gather_objects([unusable])), ""):
        p.kept[how] = "live"
        say(f"{what}: computed live, the feature cache cannot be used: {unusable}")
        return None
    tried = PICK.randrange(len(views))
    began = time.perf_counter()
    ids, inputs, _ = next(batches.deal(PICK.randrange(batches.count), batches.count, views[tried]))
    live = below(inputs)
    seconds = (time.perf_counter() - began) * len(batches) / len(ids)
    absent = distributed.all_reduce_sum(*(float(found[key] is None) for key in keys))
    missing = [view for view, n in zip(views, absent, strict=True) if n]
    try:
        parts, _ = taken_apart(live, len(ids))
        size = sum(v.numel() * v.element_size() for v in parts.values()) * len(batches) // len(ids)
        undecided = missing and how not in p.kept
        why = no_gain(cache, seconds, size, len(missing), passes) if undecided else ""
        if why := distributed.broadcast(why):
            p.kept[how] = "live"
            say(f"{what}: computed live, {why}")
            return None
        for view, key in zip(views, keys, strict=True):
            if view in missing:
                known = {ids: live} if view == views[tried] else {}
                found[key] = written(cache, key, below, batches, view, known, what)
    except (OSError, NotStorableError) as error:
        p.kept[how] = "live"
        say(f"{what}: computed live, the feature cache cannot hold it: {error}")
        return None
    taken = [entry for key in keys if (entry := found[key]) is not None]
    if distributed.any_rank(not all(holds(e, batches) for e in taken)) or distributed.any_rank(
        not close(taken[tried].batch(ids), live)
    ):
        p.kept[how] = "live"
        say(f"{what}: computed live, what the feature cache holds differs from it")
        return None
    p.kept.update(zip(keys, taken, strict=True))
    p.kept[how] = "kept"
    where = "kept for later in" if missing else "from"
    of = f" x {len(views)} views" if len(views) > 1 else ""
    size *= len(views)
    say(f"{what}: {len(batches)} rows{of} {where} the feature cache ({size / 1e6:.1f} MB)")
    return taken


def written(
    cache: FeatureCache,
    key: str,
    below: LowerBlocks,
    batches: Batches,
    view: int,
    known: Mapping[tuple[str, ...], Any],
    what: str,
) -> Entry:
    """The entry of a view, computed by all processes and written by the first; ``known``, by their
    ids, are batches that were computed before.

    Raises OSError where one of them does not see it afterwards, and as ``FeatureCache.write``.
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
    for _ in rows:  # what the first process writes, or could not: the others compute their share
        pass
    if failed := distributed.broadcast(failed):
        raise OSError(failed)
    entry = entry or cache.open(key)
    if distributed.any_rank(entry is None):
        raise OSError(f"not every process sees {cache.root}")
    assert entry is not None
    return entry


def no_gain(cache: FeatureCache, seconds: float, size: int, missing: int, passes: int | None) -> str:
    """Why keeping ``missing`` passes of ``size`` bytes and ``seconds`` each is not worth it; or ""."""
    there = next((d for d in (cache.root, *cache.root.parents) if d.is_dir()), Path.cwd())
    room = min(cache.limit, shutil.disk_usage(there).free // 2)
    if size * missing > room:
        return f"since its {size * missing / 1e6:,.0f} MB are more than the {room / 1e6:,.0f} there are"
    reading = size / READ
    if passes is not None and passes * (seconds - reading) <= missing * (seconds + reading):
        return f"since to keep it takes {missing} passes and saves {passes}"
    return ""


def holds(entry: Entry, batches: Batches) -> bool:
    """Return whether an entry has every row of the batches."""
    return all(e.id in entry.place for e in batches.examples)


def close(kept: Inputs, live: Inputs) -> bool:
    """Equal to rounding, of bfloat16 where they are that; of texts, where there are tokens."""
    if isinstance(kept, torch.Tensor) or isinstance(live, torch.Tensor):
        pairs = [(kept, live)]
    else:
        mask = live.get(MASK)
        every = mask.bool() if mask is not None else slice(None)
        if set(kept) != set(live) or any(kept[n].shape != live[n].shape for n in live):
            return False
        pairs = [(kept[n][every], live[n][every]) for n in live]
    return all(_close(a, b) for a, b in pairs)


def _close(kept: object, live: object) -> bool:
    if not isinstance(kept, torch.Tensor) or not isinstance(live, torch.Tensor):
        return False
    if kept.shape != live.shape or kept.dtype != live.dtype:
        return False
    rtol = 1e-2 if live.dtype == torch.bfloat16 else 1e-4
    atol = rtol * (1e-6 + float(live.abs().max()))
    return torch.allclose(kept.float(), live.float(), rtol=rtol, atol=atol)


def tokens_digest(batches: Batches) -> str | None:
    """Of what the tokenizer made of the texts, which says all about it and its cut."""
    if not isinstance(batches.reader, TextReader):
        return None
    tokens = batches.reader.tokens
    found = hashlib.sha256(json.dumps(tokens.ends.tolist()).encode())
    for name, flat in sorted(tokens.flat.items()):
        found.update(name.encode() + flat.astype(np.int32).tobytes())
    return found.hexdigest()
