"""Reuse of frozen leading blocks: their output comes from the feature cache, and is not computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..data.batches import Batches
from ..data.columns import ids_of, some_of
from ..data.readers import use_image_cache
from ..data.store import Entry
from ..evidence.frontier import ALPHAS
from ..freezing import Adapting
from ..training.records import FitData, PhaseData
from ..training.schedules import lowest_trainable
from .feature_cache import CachedOutputs, LowerBlocks

if TYPE_CHECKING:
    from ..data.batches import LabelledBatch
    from ..data.types import Augment, Example
    from ..model.types import Source, Target
    from ..regularizers import Penalty
    from ..training.settings import FitSpec
    from .job import Job

Wrap = Callable[[Batches], Batches]


class Reused(Batches):
    """Batches in the same order whose inputs are the outputs of the blocks below a cut.

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
class FitPhases:
    """The rows of a fit by the number of its frozen leading blocks: inputs, or cached outputs of these blocks."""

    job: Job
    target: Target
    data: FitData
    spec: FitSpec
    store: CachedOutputs
    wrap: Wrap  # goes around training batches, to show progress

    def __call__(self, frozen: int) -> PhaseData:
        """Return the rows for as long as so many leading blocks are frozen."""
        live = self.wrap(self.data.train)
        phase = self._phase(frozen, live)
        splits, val, epochs, seeds = self.job.data.splits, self.data.val, self.spec.settings.epochs, len(self.job.seeds)
        if phase.train is live:
            self._keep_images(self.data.train, "train", splits.train, epochs * seeds)
        if val is not None and phase.val is val:
            self._keep_images(val, "val", splits.val, (epochs + len(ALPHAS)) * seeds)
        return phase

    def _keep_images(self, batches: Batches, split: str, examples: Sequence[Example], passes: int) -> None:
        """Let batches take decoded images from the cache, if that pays over the passes to come."""
        passes += self._scratch_passes()
        store = self.store
        batches.reader = use_image_cache(
            batches.reader, examples, split, store.cache, passes, store.memo.images, store.note
        )

    def _scratch_passes(self) -> int:
        """Return how often the scratch control goes over the rows, at most."""
        scratch, data = self.job.scratch, self.job.data
        folds = 0 if data.splits.val else len(data.folds())
        return scratch.epochs * scratch.fits(len(self.job.seeds), folds) if scratch else 0

    def _phase(self, frozen: int, live: Batches) -> PhaseData:
        train, val, blocks = self.data.train, self.data.val, self.job.source.blocks
        inside = frozen < len(blocks)
        if (
            not frozen
            or self.job.plan.run.shard  # sharded blocks compute inside the backbone alone
            or isinstance(self.spec.freezing, Adapting)
            or (inside and any(b.run is None for b in blocks))
        ):
            return PhaseData(live, val)
        names = [b.name for b in self.target.blocks]
        compute, backbone = self.job.compute, self.target.model.get_submodule("backbone")
        below = LowerBlocks(self.job.source, compute, backbone, frozen, compute.precision)
        epochs, seeds = range(1, self.spec.settings.epochs + 1), len(self.job.seeds)
        passes = [lowest_trainable(names, self.spec.freezing(names, e)) for e in epochs].count(frozen)
        reused = None
        if val is not None:
            what = f"val below {names[frozen]}"
            exact = replace(below, precision="float32")  # evaluation always uses float32
            reused = self.store.entries(exact, val, [0], passes=(passes + 1) * seeds, what=what)
        why, views = views_of(train, self.spec.penalties, self.job.source, self.job.plan.fit.views)
        if why:
            entries = None
            if why not in self.store.memo.reported:  # not for every phase and seed
                self.store.memo.reported.add(why)
                self.store.note(f"{names[frozen - 1]} and below are frozen, and computed at every step: {why}")
        else:
            again = passes if views != [0] else passes * seeds
            entries = self.store.entries(below, train, views, passes=again, what=f"train below {names[frozen]}")
        return PhaseData(
            self.wrap(Reused(train, entries)) if entries else live,
            Reused(val, reused) if val is not None and reused else val,
            frozen if entries else 0,
            frozen if reused else 0,
        )


def views_of(train: Batches, penalties: Mapping[str, Penalty], source: Source, wanted: int) -> tuple[str, list[int]]:
    """Return (why training rows differ from epoch to epoch, the views of them to keep).

    View 0 is the row as it stands. ``wanted`` augmented views are kept, if the plan asks for that.
    """
    if looks := sorted(n for n, q in penalties.items() if q.needs_inputs or q.maps):
        return f"{looks[0]} looks at the inputs", []
    augment = train.reader.augment
    if augment is None or source.kind != "image":
        return "", [0]
    if augment.mixup or augment.cutmix:
        return "MixUp and CutMix mix pictures", []
    if not (augment.random_resized_crop or augment.flip or augment.randaugment):
        return "", [0]
    if not wanted:
        return "each epoch augments anew (fit.views = K would keep K views of a picture)", []
    if train.order.strata is not None:
        return "balanced sampling draws a picture several times, each augmented anew", []
    return "", list(range(1, wanted + 1))
