"""A job: all that is known before training; and the outputs of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ..data.columns import ids_of
from ..evidence.intervals import value_of
from ..evidence.linear_probe import Probe, fit_probe, fit_soft_probe
from ..evidence.looks import MOST_SEEDS
from ..evidence.scoring import Predictions, score
from ..model.forward import Outputs, outputs
from ..model.grafting import graft
from ..model.sharded import offloaded
from ..model.trainable import eval_mode
from .feature_cache import CachedOutputs, LowerBlocks, cache_of

if TYPE_CHECKING:
    from ..checks import Finding
    from ..compute.device import Compute
    from ..metrics import Metric
    from ..model.types import Source, Target
    from ..plan.schema import ProbePlan, ResolvedPlan
    from ..runs.result_parts import Block
    from ..tasks import Task
    from ..training.settings import FitSpec
    from .resolve import Reasons, ScratchBudget
    from .target_data import Memo, SourceData, TargetData

Figures = dict[str, float]  # the primary metric and "loss"


@dataclass(frozen=True)
class PreparationNotes:
    """Facts of the preparation that are only shown."""

    reasons: Reasons
    blocks: list[Block]
    source_data: list[str]
    findings: tuple[Finding, ...] = ()  # of the checks that need the rows alone


@dataclass(frozen=True)
class Start:
    """Where a fit starts from."""

    probe: Probe  # the start of its frontier, α = 0
    head: Probe  # what training starts from: the probe itself, or a softer one


@dataclass(frozen=True)
class Job:
    """A prepared run. Its ``spec`` is that of the first seed, without penalties, which each fit makes anew."""

    plan: ResolvedPlan
    data: TargetData
    source: Source
    source_data: SourceData | None
    target: Target  # grafted with the first seed; its backbone is θs until someone fits it
    spec: FitSpec
    compute: Compute
    scratch: ScratchBudget | None
    notes: PreparationNotes
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)  # column → value of each test row

    @property
    def seeds(self) -> range:
        """Return the seeds of the repeats; all that may be fitted, where the verdict ends them."""
        count = MOST_SEEDS if self.plan.run.seeds == "auto" else self.plan.run.seeds
        return range(self.plan.run.seed, self.plan.run.seed + count)

    @property
    def looks(self) -> bool:
        """Return whether the verdict is looked at seed after seed, and ends them."""
        return self.plan.run.seeds == "auto"

    @property
    def memo(self) -> Memo:
        """Return the results that the fits of the run share."""
        return self.data.memo

    @property
    def outputs(self) -> ModelOutputs:
        """Return what computes the outputs of models on the job's rows."""
        store = CachedOutputs(cache_of(self.plan.run, self.source), self.memo)
        return ModelOutputs(self.data, self.source, self.compute, store, self.plan.run.feature_precision)

    def initial_target(self, source: Source, seed: int, start: Probe | None = None) -> Target:
        """Return the target before fitting, α = 0. Weights that are to be sharded lie on the CPU."""
        with offloaded(source.backbone, self.plan.run.shard):
            target = graft(source, self.data.task.outputs, seed=seed)
        if start is not None:
            start.write_to(target.model.get_submodule("head"))
        return target


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of models on the rows of a job."""

    data: TargetData
    source: Source
    compute: Compute
    store: CachedOutputs
    precision: str  # of the features that the probe is fitted on

    def at_level(self, level: int) -> ModelOutputs:
        """Return a copy that reports its decisions at another level of the log."""
        return replace(self, store=replace(self.store, level=level))

    def features(self, split: str, precision: str = "float32") -> Outputs:
        """Return the source's features of a split, computed once.

        Only those of train and val are kept on disk: later fits use them too.
        """
        return self.data.memo.features(split, precision, lambda: self._features(split, precision))

    def _features(self, split: str, precision: str) -> Outputs:
        if split == "test":
            return outputs(self._backbone, self.data.batches(split), self.compute, precision)
        return self.cached_features(split, precision)

    @property
    def _backbone(self) -> torch.nn.Module:
        return self.source.backbone.to(self.compute.device)

    def cached_features(self, split: str, precision: str) -> Outputs:
        """Return the source's features of a split, from the cache where they are there."""
        batches, backbone = self.data.batches(split), self._backbone
        below = LowerBlocks(self.source, self.compute, backbone, len(self.source.blocks), precision)
        entries = self.store.entries(below, batches, [0], passes=None, what=f"features of {split}")
        if entries is None:
            return outputs(backbone, batches, self.compute, precision)
        ids = tuple(ids_of(batches.examples))
        values = entries[0].rows(ids)
        assert isinstance(values, torch.Tensor)
        return Outputs(ids, values.float(), batches.rows.targets.clone())

    def probe_features(self) -> dict[str, Outputs]:
        """Return the source's features of train and val, in the precision of the probe."""
        return {split: self.features(split, self.precision) for split in ("train", "val") if split in self.data.targets}

    def features_of(self, target: Target, split: str, rows: Sequence[int] | None = None) -> Outputs:
        """Return the features of a target's backbone for a split, or for some of its rows."""
        if self.unchanged(target):
            features = self.features(split)
            return features if rows is None else features.take(rows)
        return outputs(target.model.get_submodule("backbone"), self.data.batches(split, rows), self.compute)

    def logits(self, target: Target, split: str, rows: Sequence[int] | None = None) -> Outputs:
        """Return the logits of a split, or of some of its rows.

        Under a backbone that is still the source's only the head is computed.
        """
        if not self.unchanged(target):
            return outputs(target.model, self.data.batches(split, rows), self.compute)
        features = self.features_of(target, split, rows)
        head = target.model.get_submodule("head")
        with eval_mode(head), torch.no_grad():
            return replace(features, values=head(features.values.to(self.compute.device)).float().cpu())

    def on_test(self, target: Target) -> Predictions:
        """Return a target's predictions of test."""
        return score(self.logits(target, "test"), self.data.task, self.data.splits.test)

    def unchanged(self, target: Target) -> bool:
        """Return whether the target's backbone is the source's, to the last bit."""
        here = target.model.get_submodule("backbone").state_dict()
        there = self.source.backbone.state_dict()
        return here.keys() == there.keys() and all(torch.equal(t, there[name].to(t.device)) for name, t in here.items())


def fit_linear_probe(
    features: Mapping[str, Outputs], data: TargetData, plan: ProbePlan, rows: Sequence[int] | None = None
) -> Probe:
    """Fit the linear probe on features of train, or of some of its rows; choose its λ on those of val, else over
    folds of the same rows."""
    train, val = features["train"], features.get("val")
    folds = () if val is not None else data.folds(rows)
    train = train if rows is None else train.take(rows)
    return fit_probe(train, data.task, plan.strengths, val=val, folds=folds, most=plan.rows)


def fit_start(
    features: Mapping[str, Outputs], data: TargetData, plan: ResolvedPlan, rows: Sequence[int] | None = None
) -> Start:
    """Return the linear probe, and the head that training starts from as ``fit.start`` says; see its parts."""
    probe = fit_linear_probe(features, data, plan.probe, rows)
    soft = plan.fit.start == "soft"
    return Start(probe, fit_soft_head(features["train"], data, plan.probe, rows) if soft else probe)


def fit_soft_head(train: Outputs, data: TargetData, plan: ProbePlan, rows: Sequence[int] | None = None) -> Probe:
    """Fit the soft probe on features of train, or of some of its rows."""
    return fit_soft_probe(train if rows is None else train.take(rows), data.task, plan.strengths, most=plan.rows)


def figures_of(rows: Sequence[Outputs], task: Task, metric: Metric) -> Figures:
    """Return the primary metric and the mean loss of logits, over parts taken together."""
    logits = torch.cat([o.values for o in rows])
    targets = torch.cat([o.targets for o in rows])
    truth, scores = task.truth(targets).numpy(), task.scores(logits).numpy()
    return {task.primary: value_of(metric, truth, scores), "loss": float(task.loss(logits, targets).mean())}
