"""Verdict, and every arm on the same test rows."""

from __future__ import annotations

from typing import Any

from ...runs.answers import answers
from ...runs.summary import estimate, looked, number, over_seeds, signed, verdict
from .. import plots
from ..reading import RunFiles

ORDER, TITLE, IN_COMPARISON = 10, "Verdict", True

TEMPLATE = """
<p class="verdict {{ tone }}">{{ words }}</p>
<ul>{% for sentence in answers %}<li>{{ sentence }}</li>{% endfor %}</ul>
<p class="note">Test, n = {{ n }}. {{ primary }} is the metric that choices were made by; gains are paired on the
same rows and positive where fine-tuning is better. Intervals are 95 %.</p>
{{ m.table(["", primary, "gain of fine-tuning over it", "the interval is"], arms, "Fine-tuning and its controls") }}
{{ m.plot(plot, "Each arm's first model on test, with its interval over rows: " ~ primary ~ ".") }}
{{ m.table(["metric", "value"], metrics, "All metrics on test") }}
{% if seeds %}
{{ m.table(["", "mean (sd)"], spread, "Over seeds: " ~ primary) }}
{{ m.table(["seed", "best epoch", "α", "val, best of those tried", "test", "scratch on test"], seeds,
  "By seed: " ~ primary ~ ". The epoch and α were chosen on val, so its figure is too high; test is not") }}
{% endif %}
"""

TONES = {"transfer helps": "good", "transfer hurts": "bad"}


def context(run: RunFiles) -> dict[str, Any] | str:
    """Return the template's values, or the sentence that says why there are none."""
    r, primary = run.result, run.primary
    arms = [("fine-tuned, the saved model", estimate(r.test[primary]), "", "")]
    means = {"fit": "fine-tuned", "scratch": "scratch", "α = 1": "α = 1"}
    spread = {arm: f"{number(m[primary].mean)} (sd {number(m[primary].sd)})" for arm, m in r.mean.items()}
    drawn = [("fine-tuned", r.test[primary])]
    for name, metrics in r.controls.items():
        over_all = over_seeds(len(r.seeds)) + looked(r, name)
        over = over_all if name in r.gains_over_seeds else "about these two models"
        # the gain over scratch is over all seeds, so its figure is too
        value = spread.get(name) if name == "scratch" else None
        arms.append((name, value or estimate(metrics[primary]), signed(r.gain[name]), over))
        drawn.append((name, metrics[primary]))
    seeds = [
        (
            s.seed,
            s.best_epoch,
            f"{s.alpha:g}",
            number(s.val.get(primary)),
            number(s.test[primary]),
            number(s.scratch[primary]) if s.scratch else "–",
        )
        for s in r.seeds
    ]
    return {
        "words": verdict(r),
        "answers": list(answers(r)),
        "tone": TONES.get(r.verdict.words, ""),
        "n": r.rows.test,
        "primary": primary,
        "arms": arms,
        "plot": plots.intervals(drawn, primary, f"{run.name} arms"),
        "metrics": [(name, estimate(e)) for name, e in r.test.items()],
        "seeds": seeds if len(seeds) > 1 else [],
        "spread": [(means[arm], text) for arm, text in spread.items()],
    }
