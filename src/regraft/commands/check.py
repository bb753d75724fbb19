"""``regraft check``: look at data and source, train nothing, list what was found.

Computes what the checks need beyond the rows: features of the source, what a cross-validated linear
probe says of each row, lengths in tokens, rows of the source task.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ..checks import CheckContext, Finding
from ..compute.malloc import freed_memory_kept
from ..data.columns import InputsOf, cells_of, concatenated, ids_of
from ..data.loading import read_rows, rows_and_splits
from ..data.preprocessing import TextPreprocessor
from ..data.splitting import draw_splits, splits_as_given
from ..data.types import Example, Splits
from ..errors import DataError
from ..evidence.power import before_run
from ..evidence.verdict import MIN_SEEDS
from ..io.log import LOGGER
from ..model.forward import joined
from ..model.types import Source
from ..pipeline.findings import CheckReport, count_classes, in_order, run_checks, seen_of
from ..pipeline.gallery import out_of_fold
from ..pipeline.job import Job, fit_linear_probe
from ..pipeline.prepare import prepare_bare
from ..pipeline.target_data import load_source_data
from ..plan.schema import Plan
from ..sources import load_source
from ..tasks import Task


@freed_memory_kept()
def check(plan: Plan, *, source: Source | None = None) -> CheckReport:
    """Check the plan's data, and its source where ``source.ref`` is not "".

    Raises DataError where the data do not read at all, PlanError and SourceError as a fit would.
    """
    options = plan.plugins.task
    how = replace(plan.data.for_task(options), on_bad="skip")
    found = read_rows(how)
    stopped: list[Finding] = []
    task: Task | None = None
    try:
        splits, task = draw_splits(found, how, options.make, options.strata)
    except DataError as error:
        splits, text = splits_as_given(found), str(error)
        stopped = [Finding("problem", "reason for fit to stop", 1, 1, (text,), "see there")]
    seen = seen_of(splits, task or options)
    source_rows = named_source_rows(plan, splits)
    if plan.source.ref or source:
        job = prepare_bare(plan, (splits, task), source) if task else None
        loaded = job.source if job else source or load_source(plan.source.ref, plan.source.options)
        if job is None:
            LOGGER.info("the source's features are not looked at: fit would stop at these data")
        else:
            seen = with_source(seen, job)
        source_rows = source_rows or own_source_rows(plan, loaded)
        if not loaded.nothing_kept:
            seen = replace(seen, source_names=loaded.words or loaded.labels)
    if source_rows:
        named = {name for cells in cells_of(source_rows) for name in cells}
        names = tuple(dict.fromkeys([*(seen.source_names or ()), *sorted(named)]))
        seen = replace(seen, source_rows=source_rows, source_names=names)
    findings, not_run = run_checks(seen)
    seeds = plan.run.seeds if plan.run.seeds == "auto" else max(plan.run.seeds, MIN_SEEDS)
    power = before_run(splits.test, task, seeds, "scratch") if task else None
    return CheckReport(
        data=plan.data.path,
        source=plan.source.ref or (source.name if source else ""),
        kind=splits.kind,
        rows={s: len(rows) for s, rows in seen.splits.items()},
        classes={s: count_classes(rows, seen.names) for s, rows in seen.splits.items()},
        notes=(*splits.notes, *([power] if power else [])),
        findings=in_order([*(replace(f, check="fit") for f in stopped), *findings]),
        not_run=not_run,
    )


# ---------------------------------------------------------------- what needs the source


def with_source(seen: CheckContext, job: Job) -> CheckContext:
    """Return what checks may look at, with features of every row, probabilities by folds and lengths in tokens."""
    preprocessor, outputs = job.data.preprocessor, job.outputs.at_level(logging.INFO)
    if isinstance(preprocessor, TextPreprocessor):
        tokens: dict[str, int] = {}
        for rows in seen.splits.values():
            tokens |= zip(ids_of(rows), preprocessor.lengths(InputsOf(rows)), strict=True)
        seen = replace(seen, tokens=tokens, max_tokens=preprocessor.spec.max_length)
    if job.source.nothing_kept:
        return seen  # features of random weights say nothing
    parts = {split: outputs.cached_features(split, outputs.precision) for split in job.data.targets}
    every = joined(list(parts.values()))
    # rows of one array in float32: a copy in float64 would be three times the memory
    seen = replace(seen, features=dict(zip(every.ids, every.values.numpy(), strict=True)))
    if not job.data.task.has_classes:
        return seen
    # λ is chosen on train (and val) as in a fit
    chosen = fit_linear_probe(parts, job.data, job.plan.probe)
    if chosen.note:
        LOGGER.info("%s", chosen.note)
    found = out_of_fold(job.data, every, chosen.strength)
    return replace(seen, probabilities=found, classes=job.data.task.classes) if found else seen


def named_source_rows(plan: Plan, splits: Splits) -> Sequence[Example] | None:
    """Return the rows of ``[source_data]``; None if it names none. Their labels are not checked."""
    if plan.source_data.path in ("own", "none"):
        return None
    rows, _, _ = rows_and_splits(replace(plan.source_data, on_bad="skip"), splits.kind)
    return rows


def own_source_rows(plan: Plan, source: Source) -> Sequence[Example] | None:
    """Return the rows that a source run was made from; None if they are gone, or the source is no run."""
    if plan.source_data.path != "own":
        return None
    data, _ = load_source_data(plan, source)
    return None if data is None else concatenated(list(data.parts.values()))
