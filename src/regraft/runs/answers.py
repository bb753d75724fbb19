"""Answers of every run, in words: does the model work, did fine-tuning add anything, is the source task kept?

They need no model from scratch. Whether transfer helps is another question, which the verdict answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from .estimates import Estimate
from .result import Result
from .result_parts import SourceRetention

MIN_SEEDS = 3  # below this an interval is about these models, not the method

BASELINES = {"majority": "always giving the most frequent answer", "mean": "always answering the mean"}

PROBE = "linear probe"

FAR = 3.0  # of the span of the other seeds


def answers(r: Result) -> Iterator[str]:
    """Yield a sentence for each question that the run can answer."""
    yield works(r)
    if PROBE in r.gain:
        yield adds(r)
    if not r.source.nothing_kept:
        yield keeps(r)


def works(r: Result) -> str:
    """Return whether the saved model is better on test than an answer that looks at no input."""
    trivial = next((name for name in r.controls if name not in (PROBE, "scratch")), None)
    if trivial is None:
        return f"not compared with a trivial answer: {r.primary} {r.test[r.primary].text()}"
    baseline = BASELINES.get(trivial, f"the control {trivial}")
    gain, n = r.gain[trivial], r.rows.test
    if not gain.has_interval:
        return f"not decided whether the model works: its {n} test rows carry no interval"
    if gain.low > 0:
        value = f"{r.test[r.primary].value:.3f}"
        return f"the model works: {r.primary} {value} on {n} rows that it never saw, {gain.text('+')} over {baseline}"
    if gain.high < 0:
        return f"not usable: worse than {baseline}, {gain.text('+')}"
    if gain.value <= 0:
        return f"not usable yet: no better than {baseline}, {gain.text('+')}"
    return f"not shown to work: {n} test rows cannot tell it from {baseline}, {gain.text('+')}"


def adds(r: Result) -> str:
    """Return what fine-tuning added to the linear probe on the source's features."""
    gain = r.gain[PROBE]
    at_start = r.fit.best_epoch == 0 or r.seeds[0].alpha == 0
    if not r.fit.fitted:
        return "the saved model is the linear probe: over the folds of train fine-tuning was no better"
    if at_start and gain.value == 0:
        return "the saved model is the linear probe: on val no epoch, and no point before one, was better"
    scope = f"over {len(r.seeds)} seeds" if PROBE in r.gains_over_seeds else "about these two models"
    if gain.low > 0:
        return f"fine-tuning adds {gain.text('+')} to the linear probe ({scope})"
    if gain.high < 0:
        return f"fine-tuning is worse than the linear probe, {gain.text('+')} ({scope}): try --freezing head_only"
    return f"not decided whether fine-tuning adds to the linear probe: {ruled_out(gain)} ({scope})"


def keeps(r: Result) -> str:
    """Return what fine-tuning cost the source task."""
    kept = r.retention
    if not isinstance(kept, SourceRetention):
        return "not measured what the source task lost: --source-data takes labelled rows of it"
    lost = kept.over_seeds or kept.forgetting
    few = "" if kept.claim else f"; under {kept.claim_from} source rows, so this is no claim"
    if lost.low > 0:
        return f"the source task lost {lost.text('+')} of {kept.metric}{few}"
    if lost.high < 0:
        return f"the source task gained: it lost {lost.text('+')} of {kept.metric}{few}"
    if not lost.has_interval:
        return f"the source task is as before on these rows, which carry no interval{few}"
    return f"no loss of the source task is shown: one beyond {lost.high:.3f} of {kept.metric} is ruled out{few}"


def far_seeds(r: Result) -> Iterator[str]:
    """Yield a sentence for each arm of which one seed lies far from the others.

    An interval over seeds assumes draws from one distribution. Where one fit in ten fails, intervals at 95 % cover 79
    to 90 %. A seed is far if its distance to the nearest other exceeds FAR times the span of the others, and the
    width of the interval over test rows.
    """
    by_arm = {"the fit": [s.test for s in r.seeds], "scratch": [s.scratch for s in r.seeds if s.scratch]}
    whole = r.test[r.primary]
    noise = whole.high - whole.low if whole.has_interval else 0.0
    for arm, figures in by_arm.items():
        values = sorted((f[r.primary], r.seeds[i].seed) for i, f in enumerate(figures))
        if len(values) < MIN_SEEDS or any(isnan(value) for value, _ in values):
            continue
        for (value, seed), others in ((values[0], values[1:]), (values[-1], values[:-1])):
            rest = [v for v, _ in others]
            if min(abs(value - v) for v in rest) > max(FAR * (max(rest) - min(rest)), noise):
                yield (
                    f"Seed {seed} of {arm} lies far from the others: {value:.3f}, they are {min(rest):.3f} to "
                    f"{max(rest):.3f}. Where fits fail now and then, every interval over seeds is too narrow."
                )


def ruled_out(gain: Estimate) -> str:
    """Return what an interval around 0 rules out."""
    if not gain.has_interval:
        return "these rows carry no interval"
    return f"a gain above {gain.high:.3f} or a loss beyond {-gain.low:.3f} is ruled out"
