"""``regraft check``: look at data and source, train nothing, list what was found.

A check is a file of checks/. Those that need the rows alone run in every fit too (``cheap``); the others
need what only ``check`` computes: features of the source, what a cross-validated linear probe says of
each row, lengths in tokens, rows of the source task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from . import plan as plans
from . import plugins
from .data import as_brought, content, divide, look, rows_and_splits
from .errors import DataError, printable
from .plan import Plan
from .types import Check, DataOptions, Example, Finding, Need, Seen, Severity, Source, Splits, Task

if TYPE_CHECKING:
    from .features import Outputs
    from .prepare import Prepared
    from .types import FloatArray

ORDER: tuple[Severity, ...] = ("problem", "caution", "note")
SHOWN = 3  # examples of a finding on the terminal
SAVED = 1_000  # and in JSON
FOLDS = 5
WHY: dict[Need, str] = {
    "features": "needs a source (--source REF)",
    "probabilities": "needs a source for these rows, and classes of 2 rows or more",
    "tokens": "needs a source that reads texts (--source REF)",
    "source names": "needs a source that names its classes, or --source-data PATH",
    "source rows": "needs --source-data PATH",
}


@dataclass(frozen=True)
class Checked:
    """All that was found, the gravest first, and what was not looked at."""

    data: str
    source: str
    kind: str
    rows: dict[str, int]  # split → rows
    findings: tuple[Finding, ...]
    not_run: dict[str, str] = field(default_factory=dict)  # check → why

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    @property
    def problems(self) -> int:
        return self.count("problem")

    def record(self) -> dict[str, Any]:
        """Plain JSON; of each finding the first SAVED examples."""
        return asdict(replace(self, findings=())) | {"findings": records(self.findings)}


def records(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(f) | {"examples": list(f.examples[:SAVED])} for f in findings]


def check(
    plan: Plan,
    *,
    allow_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
    source: Source | None = None,
) -> Checked:
    """Look at the plan's data, and at its source where ``source.ref`` is not "".

    Raises DataError where the data do not read at all, PlanError and SourceError as a fit would.
    """
    options = plans.task_options(plan, allow_code=allow_code)
    how = replace(
        plans.data_options(plan),
        on_bad="skip",
        empty_labels=getattr(options, "empty_labels", False),
    )
    found = look(how)
    stopped: list[Finding] = []
    task: Task | None = None
    try:
        splits, task = divide(found, how, options.make, options.strata)
    except DataError as error:
        splits, text = as_brought(found), str(error)
        stopped = [Finding("problem", "reason for fit to stop", 1, 1, (text,), "see there")]
    seen = seen_of(splits, str(plan.task.get("name", "classification")), task)
    source_rows = named_source_rows(plan, splits)
    if plan.source.ref or source:
        p, why = prepared(plan, (splits, task) if task else None, allow_code, source)
        loaded = p.source if p else source or load(plan)
        if p is None and why:
            say(why)
        if p is not None:
            seen = with_source(seen, p, say)
        source_rows = source_rows or own_source_rows(plan, loaded)
        if not loaded.nothing_kept:
            seen = replace(seen, source_names=loaded.words or loaded.labels)
    if source_rows:
        named = {name for e in source_rows for name in e.cells}
        names = tuple(dict.fromkeys([*(seen.source_names or ()), *sorted(named)]))
        seen = replace(seen, source_rows=source_rows, source_names=names)
    findings, not_run = run_checks(seen)
    return Checked(
        data=plan.data.path,
        source=plan.source.ref or (source.name if source else ""),
        kind=splits.kind,
        rows={s: len(rows) for s, rows in seen.splits.items()},
        findings=in_order([*(replace(f, check="fit") for f in stopped), *findings]),
        not_run=not_run,
    )


def cheap(splits: Splits, task: Task) -> tuple[Finding, ...]:
    """What the checks find that need the rows alone: no features, no second look at a file."""
    return in_order(run_checks(seen_of(splits, task.name, task))[0])


def run_checks(seen: Seen) -> tuple[list[Finding], dict[str, str]]:
    """Every check that has what it needs; and why the others did not run."""
    there: dict[Need, bool] = {
        "features": seen.features is not None,
        "probabilities": seen.probabilities is not None,
        "tokens": seen.tokens is not None,
        "source names": seen.source_names is not None,
        "source rows": seen.source_rows is not None,
    }
    findings: list[Finding] = []
    not_run: dict[str, str] = {}
    for name in plugins.names("checks"):
        module = cast("Check", plugins.module("checks", name))
        if missing := [need for need in sorted(module.NEEDS) if not there[need]]:
            not_run[name] = WHY[missing[0]]
            continue
        findings += [replace(f, check=name) for f in module.check(seen)]
    return findings, not_run


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (ORDER.index(f.severity), f.check)))


def seen_of(splits: Splits, name: str, task: Task | None) -> Seen:
    return Seen(
        kind=splits.kind,
        task=name,
        splits={"train": splits.train, "val": splits.val, "test": splits.test},
        names=namer(name, task),
        unreadable=splits.unreadable,
        left_out=splits.left_out,
        empty=splits.empty,
    )


def namer(name: str, task: Task | None) -> Callable[[Example], tuple[str, ...]]:
    """A row → its class or labels; none of numbers, nor of labels that are not understood."""
    if name == "classification":
        return lambda e: e.cells
    if name != "multilabel" or task is None:
        return lambda e: ()
    return lambda e: tuple(
        c for c, on in zip(task.classes, task.encode([e.cells])[0].tolist(), strict=True) if on
    )


# ---------------------------------------------------------------- what needs the source


def load(plan: Plan) -> Source:
    from .sources import load_source

    return load_source(plan.source.ref, plans.source_options(plan))


def prepared(
    plan: Plan, data: tuple[Splits, Task] | None, allow_code: bool, source: Source | None
) -> tuple[Prepared | None, str]:
    """What a fit of these rows would start from, so that it finds their features in the cache."""
    if data is None:
        return None, "the source's features are not looked at: fit would stop at these data"
    from .prepare import prepare

    bare = plan.model_copy(
        update={
            "freezing": {"name": "everything"},
            "regularizers": {},
            "evaluate": plans.EvaluatePlan(),
            "source_data": plans.SourceDataPlan(path="none"),
            "fit": plan.fit.model_copy(update={"retain": None, "alpha": "chosen"}),
        }
    )
    return prepare(bare, allow_code=allow_code, source=source, data=data), ""


def with_source(seen: Seen, p: Prepared, say: Callable[[str], None]) -> Seen:
    """Features of every row, probabilities by folds, and lengths in tokens."""
    from .arms import joined
    from .preprocess import TextPreprocessor
    from .reuse import features

    if isinstance(p.preprocessor, TextPreprocessor):
        rows = seen.rows
        lengths = p.preprocessor.lengths([e.inputs for e in rows])
        tokens = {e.id: n for e, n in zip(rows, lengths, strict=True)}
        seen = replace(seen, tokens=tokens, max_tokens=p.preprocessor.spec.max_length)
    if p.source.nothing_kept:
        return seen  # features of random weights say nothing
    parts = {split: features(p, split, say) for split in p.targets}
    every = joined(list(parts.values()))
    values = every.values.double().numpy()
    seen = replace(seen, features=dict(zip(every.ids, values, strict=True)))
    if seen.task != "classification":
        return seen
    found = out_of_fold(p, every, parts)
    return replace(seen, probabilities=found, classes=p.task.classes) if found else seen


def out_of_fold(
    p: Prepared, every: Outputs, parts: Mapping[str, Outputs]
) -> dict[str, FloatArray] | None:
    """Row → probabilities [C] by a linear probe that saw neither it, nor its group, nor equal content.

    λ is chosen on train (and val) as in a fit; the folds are over all rows, so that test is judged
    too: for its labels, by models that are thrown away. None where a class has a single row.
    """
    from .linear_probe import fit_probe, folds_of

    examples = {e.id: e for s in ("train", "val", "test") for e in getattr(p.splits, s)}
    rows = [examples[i] for i in every.ids]
    copies = Counter(content(e) for e in rows)
    groups = [e.group or (content(e) if copies[content(e)] > 1 else None) for e in rows]
    folds = folds_of([";".join(e.cells) for e in rows], groups, FOLDS)
    if not folds:
        return None
    chosen = fit_probe(
        parts["train"], p.task, p.plan.probe.strengths, val=parts.get("val"), folds=p.folds()
    )
    found: dict[str, FloatArray] = {}
    for fit, judge in folds:
        probe = fit_probe(every.take(fit), p.task, [chosen.strength])
        judged = every.take(judge)
        scores = p.task.scores(probe.logits(judged.values)).numpy()
        found |= dict(zip(judged.ids, scores, strict=True))
    return found


def named_source_rows(plan: Plan, splits: Splits) -> tuple[Example, ...] | None:
    """The rows of ``[source_data]``; None where it names none. Their labels are not checked."""
    if plan.source_data.path in ("own", "none"):
        return None
    options: DataOptions = replace(plans.source_data_options(plan), on_bad="skip")
    rows, _, _ = rows_and_splits(options, splits.kind)
    return tuple(rows)


def own_source_rows(plan: Plan, source: Source) -> tuple[Example, ...] | None:
    """Those that a source was made from, where it is a run and they are still there."""
    if plan.source_data.path != "own":
        return None
    from .source_data import load_source_data

    data, _ = load_source_data(plan, source)
    return None if data is None else tuple(e for part in data.parts.values() for e in part)


# ---------------------------------------------------------------- in words


def in_words(found: Checked) -> str:
    """The list as the terminal shows it."""
    rows = ", ".join(f"{s} {n:,}" for s, n in found.rows.items())
    head = f"{found.data}: {sum(found.rows.values()):,} {found.kind}s that can be used ({rows})"
    lines = [head + (f"; source {found.source}" if found.source else "")]
    for f in found.findings:
        lines += ["", *finding_in_words(f)]
    counts = ", ".join(
        f"{n} {severity}{'' if n == 1 else 's'}"
        for severity, n in ((s, found.count(s)) for s in ORDER)
    )
    lines += ["", counts if found.findings else "nothing found"]
    reasons: dict[str, list[str]] = {}
    for name, why in found.not_run.items():
        reasons.setdefault(why, []).append(name)
    lines += [f"not looked at: {', '.join(names)} {why}" for why, names in reasons.items()]
    return "\n".join(lines)


def finding_in_words(f: Finding) -> Iterator[str]:
    yield f"{f.severity.upper():<8} {one_line(f)}"
    for example in f.examples[:SHOWN]:
        yield f"           {printable(example)}"
    if len(f.examples) > SHOWN:
        yield f"           and {len(f.examples) - SHOWN:,} more"
    yield f"         → {f.remedy}"


def one_line(f: Finding) -> str:
    return f"{f.check}: {f.count:,} of {f.of:,} {f.what}"
