"""Sources that are compared on the same rows: their features, probes on the same folds, and fits.

The rows are the labelled ones outside test. A probe is cross-validated: the folds are the same for every source, and
the probe's λ is chosen within a fold's own training rows. Features come from the job of a fit, so that a later fit
finds them in the cache.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from .. import plugins
from ..compute.malloc import give_back
from ..data.columns import Examples, cells_of, concatenated, groups_of, ids_of, some_of
from ..data.loading import load_data
from ..data.splitting import unit_numbers
from ..errors import DataError, PlanError, SourceError
from ..evidence.frontier import choose as choose_point
from ..evidence.h_score import h_score
from ..evidence.linear_probe import Fold, choose_rows, fit_probe, folds_of
from ..evidence.ranking import Entrant
from ..evidence.scoring import Predictions, at_threshold, score
from ..io.log import LOGGER
from ..io.progress import stage
from ..metrics import Metric
from ..model.forward import Outputs, joined
from ..model.types import Source
from ..plan.schema import EvaluatePlan
from ..runs.estimates import Point
from ..sources import load_source
from ..tasks import Task
from .arms import ArmFitter
from .folds import FoldFitter, logits_of_all
from .job import figures_of, fit_start
from .prepare import MAX_FOLDS, prepare, prepare_bare
from .trial import alpha_on_folds, score_job

if TYPE_CHECKING:
    from ..data.types import Example, Splits
    from ..plan.schema import Plan


MAX_ROWS = 10_000  # labelled rows that are looked at

INNER_FOLDS = 3  # of a fold's training rows, to choose λ by

MAX_INNER_ROWS = 2_000  # of a fold's training rows; with more, one of the inner folds chooses λ


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Rows:
    """The labelled rows outside test, sorted by id, and their folds: the same for every source."""

    splits: Splits  # without test; of too many rows, those that are looked at
    whole: Splits  # without test
    task: Task
    metric: Metric
    strata: list[str]
    units: list[str | None]  # rows of one group, or with equal inputs
    max_folds: int

    @cached_property
    def examples(self) -> Sequence[Example]:
        """Return the rows."""
        return in_order(self.splits)

    @cached_property
    def folds(self) -> list[Fold]:
        """Return the folds. A unit stays in one of them."""
        found = folds_of(self.strata, self.units, self.max_folds)
        return [(fit, judge) for fit, judge in found if fit and judge]

    @cached_property
    def inner(self) -> list[list[Fold]]:
        """Return for each fold the folds of its training rows that choose λ.

        They are not stratified where a class has one row left. There are none where all rows are of one group.
        """
        each = []
        for fit, _ in self.folds:
            strata, units = [self.strata[i] for i in fit], [self.units[i] for i in fit]
            each.append(folds_of(strata, units, INNER_FOLDS) or folds_of([""] * len(fit), units, INNER_FOLDS))
        return [own[: 1 if len(fit) > MAX_INNER_ROWS else None] for own, (fit, _) in zip(each, self.folds, strict=True)]

    def predictions(self, logits: Outputs, examples: Sequence[Example], units: Sequence[str | None]) -> Predictions:
        """Return scores of rows whose units stay whole in a bootstrap."""
        scored = score(logits, self.task, examples)
        return replace(scored, groups=tuple(units) if any(u is not None for u in units) else None)


def in_order(splits: Splits) -> Sequence[Example]:
    """Return the rows of train and val, sorted by id."""
    every = concatenated([splits.train, splits.val])
    ids = list(ids_of(every))
    return some_of(every, sorted(range(len(ids)), key=ids.__getitem__))


def units_of(examples: Sequence[Example]) -> list[str | None]:
    """Return the unit of each row that shares its group or its inputs with another row; None for other rows."""
    assert isinstance(examples, Examples)
    numbers = unit_numbers(examples).tolist()
    counts = Counter(numbers)
    return [f"unit {n}" if counts[n] > 1 else None for n in numbers]


def read_rows(plan: Plan) -> tuple[Rows, list[str]]:
    """Return the rows to compare on, and notes. Raises DataError where they do not suffice for folds."""
    options = plan.plugins.task
    splits, task = load_data(plan.data.for_task(options), options.make, options.strata)
    whole = splits = replace(splits, test=splits.test[:0])
    metric = at_threshold(cast(Metric, plugins.module("metrics", task.primary)), task)
    examples = in_order(splits)
    notes = [note for note in splits.notes if note.startswith("left out: ")]
    if len(examples) > MAX_ROWS:
        count = len(examples)
        none = torch.empty(count, 0)
        share = choose_rows(Outputs(tuple(ids_of(examples)), none, task.encode(cells_of(examples))), MAX_ROWS)
        examples = some_of(examples, share)
        splits = replace(splits, train=examples, val=splits.val[:0])
        notes.append(
            f"{MAX_ROWS:,} of {count:,} labelled rows are compared on, of each class its share; a fit computes its "
            "features anew"
        )
    strata = options.strata(cells_of(examples))
    rows = Rows(splits, whole, task, metric, strata, units_of(examples), plan.data.folds or MAX_FOLDS)
    if not rows.folds:
        name, count = min(Counter(strata).items(), key=lambda item: item[1])
        raise DataError(
            f'{plan.data.path}: no folds can be made of {len(examples)} labelled rows outside test: "{name}" has '
            f"{count}, and all of them have {len(set(groups_of(examples)) - {None})} groups; bring 2 rows of each "
            "class or more, of 2 groups or more"
        )
    if not all(rows.inner):
        notes.append("λ of some probes is the middle one of probe.strengths: their training rows are of one group")
    if any(len(fit) > MAX_INNER_ROWS for fit, _ in rows.folds):
        notes.append(f"λ of each probe is chosen on one of {INNER_FOLDS} inner folds, since rows are many")
    return rows, notes


# ---------------------------------------------------------------- sources


@dataclass
class Probed:
    """A candidate while it is looked at."""

    name: str
    given: str | Source
    offline: bool  # a source that nobody named is never fetched
    parameters: int = 0
    imagenet_accuracy: float | None = None
    nothing_kept: bool = False
    features: Outputs | None = None  # [N, D], in the order of ``Rows.examples``
    seconds: float = 0.0

    def load(self, plan: Plan) -> Source:
        """Return the source. Raises SourceError where it cannot be loaded."""
        if isinstance(self.given, Source):
            return self.given
        torch.manual_seed(plan.run.seed)  # a random source is drawn here
        options = plan.source.options
        return load_source(self.given, replace(options, offline=options.offline or self.offline))


def look(plan: Plan, rows: Rows, candidate: Probed) -> None:
    """Load a candidate and compute its features, from the cache where they are there.

    Raises SourceError, DataError or PlanError for a source that does not suit the plan or its rows.
    """
    began = time.perf_counter()
    source = candidate.load(plan)
    kind = rows.splits.kind
    if source.kind not in (kind, "tensor"):
        raise SourceError(f"it takes {source.kind}s, and {plan.data.path} holds {kind}s")
    candidate.parameters = sum(p.numel() for p in source.backbone.parameters())
    candidate.imagenet_accuracy, candidate.nothing_kept = source.imagenet_accuracy, source.nothing_kept
    LOGGER.info("%s: features of %d rows", candidate.name, len(rows.examples))
    job = prepare_bare(plan, (rows.splits, rows.task), source)
    features = joined(list(job.outputs.probe_features().values()))
    place = {id_: i for i, id_ in enumerate(features.ids)}
    candidate.features = features.take([place[id_] for id_ in ids_of(rows.examples)])
    bad = int((~torch.isfinite(candidate.features.values)).any(1).sum())
    if bad:
        raise SourceError(f"its features of {bad} of {len(rows.examples)} rows are not finite")
    candidate.seconds = time.perf_counter() - began
    del job, source
    give_back()


def h_scores(candidates: Sequence[Probed], rows: Rows) -> dict[str, float]:
    """Return the H-score of each candidate's features, by name."""
    scores: dict[str, float] = {}
    for candidate in stage("H-scores", len(candidates), "sources").over(candidates):
        assert candidate.features is not None
        scores[candidate.name] = h_score(candidate.features.values.numpy(), rows.strata)
    return scores


def probe(plan: Plan, rows: Rows, candidate: Probed) -> Entrant:
    """Return a candidate's scores of all rows by probes that did not see them."""
    began = time.perf_counter()
    features = candidate.features
    assert features is not None
    LOGGER.info("%s: linear probe on %d folds", candidate.name, len(rows.folds))
    logits = torch.zeros(len(features.ids), rows.task.outputs)
    for (fit, judge), inner in zip(rows.folds, rows.inner, strict=True):
        found = fit_probe(features.take(fit), rows.task, plan.probe.strengths, folds=inner, most=plan.probe.rows)
        logits[judge] = found.logits(features.values[judge])
    scored = replace(features, values=logits)
    loss = figures_of([scored], rows.task, rows.metric)["loss"]
    entrant = Entrant(candidate.name, rows.predictions(scored, rows.examples, rows.units), loss)
    candidate.features = None
    candidate.seconds += time.perf_counter() - began
    return entrant


# ---------------------------------------------------------------- fits


def fit(plan: Plan, rows: Rows, candidate: Probed) -> Entrant:
    """Fine-tune a candidate by the plan, and return its scores of val, or of all rows by folds where there is no val.

    Raises DivergedError, and PlanError or SourceError for a plan that does not go with this source.
    """
    source = candidate.load(plan)
    own = plan.with_sections(source=plan.source.model_copy(update={"ref": source.name}), evaluate=EvaluatePlan())
    job = prepare(own, source=source, data=(rows.whole, rows.task))
    val = rows.whole.val
    logits = score_job(job).rows if val else logits_on_folds(FoldFitter(ArmFitter(job)), rows)
    loss = figures_of([logits], rows.task, rows.metric)["loss"]
    if val:
        return Entrant(candidate.name, rows.predictions(logits, val, units_of(val)), loss)
    return Entrant(candidate.name, rows.predictions(logits, rows.examples, rows.units), loss)


def logits_on_folds(folds: FoldFitter, rows: Rows) -> Outputs:
    """Fit on each fold's training rows, and return the logits of all rows at the plan's α, or the best over the folds.

    Raises PlanError for a floor of the source task, and for an α that is no point of the frontier.
    """
    job = folds.arms.job
    if job.plan.fit.retain is not None:
        raise PlanError("fit.retain: fits by folds are compared without a floor of the source task: remove it")
    from_probe = not job.source.nothing_kept and job.plan.fit.start != "random"
    alpha = alpha_on_folds(job.plan.fit.alpha, from_probe)
    place = {id_: i for i, id_ in enumerate(ids_of(job.data.splits.train))}
    ids = list(ids_of(rows.examples))
    fits = []
    for k, fold in enumerate(rows.folds):
        train, judge = ([place[ids[i]] for i in part] for part in fold)
        start = fit_start(job.outputs.probe_features(), job.data, job.plan, train) if from_probe else None
        found = folds.fit_fold(job.source, job.spec.settings, start, (train, judge), f"fold {k}")
        fits.append(replace(found, end={}))  # the weights are not needed
    together = logits_of_all(fits, rows.folds)
    if alpha is not None:
        return together[alpha]
    points = [Point(at, figures_of([own], job.data.task, job.data.metric)) for at, own in together.items()]
    return together[choose_point(points, job.data.metric).alpha]
