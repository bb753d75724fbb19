"""The summary that ends a run, from result.json alone; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from pathlib import Path

from ..errors import printable
from ..io.command_lines import command
from .answers import MIN_SEEDS, answers, far_seeds
from .estimates import Estimate
from .guarantees import Abstention, Sets
from .result import Result
from .result_parts import Agreement, Calibration, CrossValidation, Frontier, Origin, Retention, SourceRetention
from .slices import FewRows, Slices

OVER_SCRATCH = {
    "transfer helps": "over training from scratch",
    "transfer hurts": "against training from scratch",
    "not decided": "over training from scratch",
}


def summary(path: Path, result: Result) -> str:
    """Return the block that ends every run; ``regraft list`` and ``evaluate`` use the same words."""
    return "\n".join(f"{head:<8} {printable(text)}".rstrip() for head, text in lines(path, result))


def lines(path: Path, r: Result) -> Iterator[tuple[str, str]]:
    """Yield (head, text) of each line of the summary."""
    yield str(path), "  " + how_it_went(r)
    for i, sentence in enumerate(answers(r)):
        yield "" if i else "IN SHORT", sentence
    names = [r.primary, *(m for m in r.summary_metrics if m != r.primary)]
    first = "" if len(r.seeds) == 1 else f" (seed {r.seeds[0].seed}, the model that is saved)"
    figures = "   ".join(f"{m} {estimate(r.test[m])}" for m in names)
    yield "TARGET", f"test, n = {r.rows.test}{first}   {figures}"
    for arm, metrics in r.mean.items():
        m = metrics[r.primary]
        name = "fine-tuned" if arm == "fit" else arm
        yield "", f"{name}, mean of {len(r.seeds)} seeds   {r.primary} {number(m.mean)} (sd {number(m.sd)})"
    for name, controls in r.controls.items():
        value = controls[r.primary].value
        if name == "scratch" and r.scratch_mean:  # its gain is over all seeds, so its figure is too
            value = r.scratch_mean.mean
        yield "", over(r, name, value)
    if r.cross_validation:
        yield "", folds(r.cross_validation, r.primary)
    if r.calibration:
        yield "", calibration(r.calibration)
    if r.sets:
        yield "", sets(r.sets)
    if r.abstention:
        yield "", abstention(r.abstention)
    if r.frontier:
        yield "FRONTIER", frontier(r, r.frontier)
    if r.retention:
        yield "SOURCE", retention(r.retention, len(r.seeds))
    for i, sentence in enumerate(slice_lines(r.slices) if r.slices else ()):
        yield "" if i else "SLICES", sentence
    yield "WEIGHTS", weights(r.source)
    yield "VERDICT", verdict(r)
    for sentence in far_seeds(r):
        yield "CAUTION", sentence
    yield (
        "NEXT",
        f"{command('report', path)}   ·   {command('predict', path)} FILE …   ·   {command('evaluate', path)} DATA",
    )


def how_it_went(r: Result) -> str:
    """Return the time, the best epoch and the seeds of a run."""
    minutes, seconds = divmod(round(r.timing.total), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    fit = r.fit
    if not fit.fitted:
        how = "the linear probe is the model: fine-tuning did not beat it by cross-validation"
    elif not r.rows.val:
        how = f"{fit.epochs} epochs (no val)"
    elif fit.best_epoch == 0:
        how = f"the starting point was best of {fit.epochs} epochs on val"
    else:
        how = f"best epoch {fit.best_epoch} of {fit.epochs} on val ({fit.stopped})"
    seeds = [s.seed for s in r.seeds]
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"done in {time} · {how} · {which}"


def over(r: Result, name: str, value: float) -> str:
    """Return a control and the paired gain over it; only scratch carries a verdict."""
    gain = r.gain[name]
    text = f"over {name} {number(value)}   {signed(gain)}"
    scope = over_seeds(len(r.seeds)) + looked(r, name) if name in r.gains_over_seeds else "paired"
    chosen = r.scratch.chosen if r.scratch and name == "scratch" else ""
    return f"{text}   {scope}" + (f"   {chosen}" if chosen else "")


def over_seeds(seeds: int) -> str:
    """Return the scope of an interval over a run's seeds."""
    if seeds == 1:
        return "paired"
    return f"over {seeds} seeds" if seeds >= MIN_SEEDS else f"paired, about these {seeds} seeds only"


def looked(r: Result, name: str) -> str:
    """Return that the interval over a control is one of several looks, or "" where it is the only one."""
    return f", looked up to {r.looks.planned} times" if r.looks and name == "scratch" else ""


def folds(c: CrossValidation, primary: str) -> str:
    """Return the figures over the folds of train."""
    fit = c.fit[primary]
    text = f"{c.folds} folds of train, n = {fit.n}   α = 1 {estimate(fit)}"
    if c.probe is None or c.gain is None:
        return text
    return f"{text}, linear probe {estimate(c.probe[primary])}   {signed(c.gain)} paired"


def frontier(r: Result, f: Frontier) -> str:
    """Return the chosen point between the start and the fit, and its gain on test."""
    alphas = sorted({s.alpha for s in r.seeds} if r.fit.fitted else {f.alpha})
    chosen = " to ".join(f"{a:g}" for a in dict.fromkeys((alphas[0], alphas[-1])))
    ends = "0 the start, 1 the fit"
    keeps = "" if f.retain is None else f", keeping {f.retain:g} of the source with 95 % confidence"
    by = "set by fit.alpha" if f.fixed else f"chosen by {f.chosen_by}{keeps}"
    if f.fixed and alphas == [1]:
        return f"α = 1 ({ends}), {by}"
    if alphas == [1]:
        return f"α = 1 ({ends}), {by}: no point between is better"
    return f"α = {chosen} ({ends}), {by}   {signed(f.gain)} over α = 1   {over_seeds(len(r.seeds))}"


def calibration(c: Calibration) -> str:
    """Return the calibration error, as it is and at the temperature fitted on held-out rows."""
    before = number(c.before.ece.value)
    if c.if_calibrated is not None:
        expected = c.if_calibrated.before
        before += f" (a calibrated model would show {number(expected.value)}, at most {number(expected.high)})"
    how = f"logits divided by {c.temperature:.2f}, as fits {'val' if c.fitted_by == 'val' else 'out-of-fold rows'}"
    if c.harmful:
        return (
            f"calibration error {before}; {how}, made the log loss on test worse: {signed(c.gain.log_loss)}, so unused"
        )
    return f"calibration error {before}; {how} (--calibrated), {number(c.after.ece.value)}"


def sets(s: Sets) -> str:
    """Return what sets or intervals hold: by the law of their held-out rows, and on test."""
    if s.law is None or s.test is None:
        return s.refusal
    rows = f"{s.rows} {'val' if s.by == 'val' else 'out-of-fold'} rows"
    approximate = "" if s.by == "val" else " (approximate)"
    what = "sets" if s.half_widths is None else "intervals"
    expected = f"to cover {100 * s.law.low:.0f} to {100 * s.law.high:.0f} % of new rows{approximate}"
    text = f"{s.percent} {what} from {rows}, {expected}; on test {estimate(s.test)}"
    if s.half_widths is not None:
        widths = ", ".join(f"{w:.4g}" for w in s.half_widths[:3])
        return f"{text}, ± {widths}" + (", …" if len(s.half_widths) > 3 else "")
    text += f", {estimate(s.size)} classes a set"
    return text if s.empty is None or s.empty.value == 0 else f"{text}, {100 * s.empty.value:.1f} % empty"


def abstention(a: Abstention) -> str:
    """Return what the model accepts at its largest error, on held-out rows and on test."""
    if a.threshold is None or a.accepted is None:
        return f"no threshold for an error of {a.percent}: {a.why}"
    rows = "val" if a.by == "val" else "out-of-fold"
    proof = (
        f"error of at most {a.percent} above confidence {a.threshold:.3f}, by {a.errors} errors in {a.accepted_rows}"
    )
    error = "none of which to judge" if a.error is None else f"error {estimate(a.error)}"
    approximate = "" if a.by == "val" and not a.grouped else " (approximate)"
    return f"{proof} {rows} rows{approximate}; on test {estimate(a.accepted)} accepted, {error}"


def retention(kept: Retention, seeds: int) -> str:
    """Return the loss on the source task; or, named as a proxy, how far the backbone moved."""
    if isinstance(kept, SourceRetention):
        share = "" if kept.ratio is None else f", {kept.ratio:.1%} kept"
        lost, scope = kept.forgetting, ""
        if kept.over_seeds is not None:
            lost, scope = kept.over_seeds, f" {over_seeds(seeds)}"
        claim = "" if kept.claim else f"; under {kept.claim_from} rows: no claim"
        return (
            f"{kept.metric} {number(kept.before.value)} before, {number(kept.after.value)} after{share}   "
            f"forgetting {signed(lost)}{scope}   n = {kept.before.n} source rows{claim}"
        )
    if isinstance(kept, Agreement):
        text = f"its own head still gives the same class to {estimate(kept.agreement)} of test rows"
    else:
        cka = "undefined" if isnan(kept.cka) else number(kept.cka)
        text = f"features on test rows resemble the source's: CKA {cka}"
    return f"{text} (a proxy: no source data)"


def slice_lines(s: Slices) -> Iterator[str]:
    """Yield the worst value of each column, then the values that are shown to be worse than all other rows."""
    for one in s.columns:
        few = f"   {few_rows(s, one.few)}" if one.few else ""
        if not one.values:
            yield f"{one.column}: no value has {s.min_rows} rows{few}"
            continue
        worst = one.values[0]
        against = "   not compared: too few other rows, or groups"
        if worst.difference is not None:
            against = f"   {signed(worst.difference)} against all other rows"
        text = f"{one.column}: worst {worst.name}, n = {worst.n}   {s.primary} {estimate(worst.metrics[s.primary])}"
        yield text + against + few
    worse = [f"{column} {value.name}" for column, value in s.worse()]
    together = f"{s.comparisons} {'comparison' if s.comparisons == 1 else 'comparisons'} at 95 % together"
    yield f"called worse: {', '.join(worse)} ({together})" if worse else f"no group is shown to be worse ({together})"


def few_rows(s: Slices, few: FewRows) -> str:
    """Return how many values have too few rows to be compared, and how many rows they have."""
    return f"fewer than {s.min_rows} rows: {few.values} {'value' if few.values == 1 else 'values'}, {few.n} rows"


def weights(source: Origin) -> str:
    """Return how many tensors were kept, and which were not."""
    if source.nothing_kept:
        return f"none kept: {source.name} starts from random weights"
    kept = source.tensors.kept + source.tensors.resized
    backbone = kept + len([n for n in source.fresh if not n.startswith("head.")])
    resized = f" ({source.tensors.resized} resized)" if source.tensors.resized else ""
    text = f"{kept} of {backbone} backbone tensors kept{resized}; fresh: {some(source.fresh)}"
    return f"{text}; unused: {some(source.unused)}" if source.unused else text


def some(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def verdict(r: Result) -> str:
    """Return the verdict, its reason, and how often test was opened."""
    v, times = r.verdict, r.test_opened
    opened = "test opened once" if times == 1 else f"test opened {times} times"
    opened = "how often test was opened could not be counted" if times == 0 else opened
    opened += f", for {r.looks.taken} looks" if r.looks and r.looks.taken > 1 else ""
    if r.source.nothing_kept:
        return f"no transfer to measure: nothing was kept; {opened}"
    if "scratch" not in r.controls:
        return f"TRANSFER not measured (--controls scratch --seeds 3); {opened}"
    if v.gain is None or v.words == "not measured":
        return f"TRANSFER not measured: {v.why}; {opened}"
    return f"{v.words}: {signed(v.gain)} {OVER_SCRATCH[v.words]} ({v.why}; {opened})"


def estimate(e: Estimate | None) -> str:
    """Return a figure with its interval, or a dash if it is missing or undefined."""
    return "–" if e is None else e.text()


def signed(e: Estimate | None) -> str:
    """Return a gain with its interval, each number with its sign, or a dash if it is missing or undefined."""
    return "–" if e is None else e.text("+")


def number(value: float | None, sign: str = "", digits: int = 3) -> str:
    """Return a number with three digits, or a dash if it is undefined."""
    return "–" if value is None or isnan(value) else f"{value:{sign}.{digits}f}"
