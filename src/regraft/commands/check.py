"""``regraft check``: look at data and source, train nothing, list what was found.

Computes what the checks need beyond the rows: features of the source, what a cross-validated linear
probe says of each row, lengths in tokens, rows of the source task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..checks import CheckContext, Finding
from ..compute.malloc import freed_memory_kept
from ..data.columns import InputsOf, cells_of, concatenated, ids_of
from ..data.loading import read_rows, rows_and_splits
from ..data.preprocessing import TextPreprocessor
from ..data.splitting import draw_splits, splits_as_given
from ..data.types import Example, SourceDataOptions, Splits
from ..errors import DataError
from ..io.progress import no_progress, reporting
from ..model.forward import joined
from ..model.types import Source
from ..pipeline.arms import probe_on
from ..pipeline.feature_reuse import features
from ..pipeline.findings import CheckReport, count_classes, in_order, run_checks, seen_of
from ..pipeline.label_errors import out_of_fold
from ..pipeline.prepare import Prepared, prepare
from ..pipeline.source_data import load_source_data
from ..plan import schema as plans
from ..plan.schema import Plan
from ..sources import load_source
from ..tasks import Task


@freed_memory_kept()
def check(plan: Plan, *, say: Callable[[str], None] = no_progress, source: Source | None = None) -> CheckReport:
    """Look at the plan's data, and at its source where ``source.ref`` is not "".

    Raises DataError where the data do not read at all, PlanError and SourceError as a fit would.
    """
    with reporting(say):
        return check_data(plan, say, source)


def check_data(plan: Plan, say: Callable[[str], None], source: Source | None) -> CheckReport:
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
        p, why = prepared(plan, (splits, task) if task else None, source)
        loaded = p.source if p else source or load_source(plan.source.ref, plan.source.options)
        if p is None and why:
            say(why)
        if p is not None:
            seen = with_source(seen, p, say)
        source_rows = source_rows or own_source_rows(plan, loaded)
        if not loaded.nothing_kept:
            seen = replace(seen, source_names=loaded.words or loaded.labels)
    if source_rows:
        named = {name for cells in cells_of(source_rows) for name in cells}
        names = tuple(dict.fromkeys([*(seen.source_names or ()), *sorted(named)]))
        seen = replace(seen, source_rows=source_rows, source_names=names)
    findings, not_run = run_checks(seen)
    return CheckReport(
        data=plan.data.path,
        source=plan.source.ref or (source.name if source else ""),
        kind=splits.kind,
        rows={s: len(rows) for s, rows in seen.splits.items()},
        classes={s: count_classes(rows, seen.names) for s, rows in seen.splits.items()},
        notes=splits.notes,
        findings=in_order([*(replace(f, check="fit") for f in stopped), *findings]),
        not_run=not_run,
    )


# ---------------------------------------------------------------- what needs the source


def prepared(plan: Plan, data: tuple[Splits, Task] | None, source: Source | None) -> tuple[Prepared | None, str]:
    """What a fit of these rows would start from, so that it finds their features in the cache."""
    if data is None:
        return None, "the source's features are not looked at: fit would stop at these data"
    bare = plan.with_sections(
        freezing={"name": "everything"},
        regularizers={},
        evaluate=plans.EvaluatePlan(),
        source_data=SourceDataOptions(path="none"),
        fit=plan.fit.model_copy(update={"retain": None, "alpha": "chosen"}),
    )
    return prepare(bare, source=source, data=data), ""


def with_source(seen: CheckContext, p: Prepared, say: Callable[[str], None]) -> CheckContext:
    """Features of every row, probabilities by folds, and lengths in tokens."""
    if isinstance(p.preprocessor, TextPreprocessor):
        tokens: dict[str, int] = {}
        for rows in seen.splits.values():
            tokens |= zip(ids_of(rows), p.preprocessor.lengths(InputsOf(rows)), strict=True)
        seen = replace(seen, tokens=tokens, max_tokens=p.preprocessor.spec.max_length)
    if p.source.nothing_kept:
        return seen  # features of random weights say nothing
    precision = p.plan.run.feature_precision
    parts = {split: features(p, split, precision, say) for split in p.targets}
    every = joined(list(parts.values()))
    # rows of one array in float32: a copy in float64 would be three times the memory
    seen = replace(seen, features=dict(zip(every.ids, every.values.numpy(), strict=True)))
    if not p.task.has_classes:
        return seen
    # λ is chosen on train (and val) as in a fit
    chosen = probe_on(p, parts)
    if chosen.note:
        say(chosen.note)
    found = out_of_fold(p, every, chosen.strength)
    return replace(seen, probabilities=found, classes=p.task.classes) if found else seen


def named_source_rows(plan: Plan, splits: Splits) -> Sequence[Example] | None:
    """The rows of ``[source_data]``; None where it names none. Their labels are not checked."""
    if plan.source_data.path in ("own", "none"):
        return None
    rows, _, _ = rows_and_splits(replace(plan.source_data, on_bad="skip"), splits.kind)
    return rows


def own_source_rows(plan: Plan, source: Source) -> Sequence[Example] | None:
    """Those that a source was made from, where it is a run and they are still there."""
    if plan.source_data.path != "own":
        return None
    data, _ = load_source_data(plan, source)
    return None if data is None else concatenated(list(data.parts.values()))
