"""Power before a run: the stated gain is shown four times in five, by the verdict itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from builders import class_task, spell_rows
from regraft.data.types import Example
from regraft.evidence.power import DISAGREEMENT, SEEDS_SD, before_run, detectable_gain, in_words, power
from regraft.evidence.scoring import Predictions, gain
from regraft.evidence.verdict import decide
from regraft.metrics import accuracy


def scored(right):
    return Predictions(tuple(map(str, range(len(right)))), np.ones(len(right), int), np.eye(2)[right])


def seed_of(rng, right):
    """A seed of an arm: some rows turn, so that the accuracy moves by a normal draw."""
    count = round(rng.normal(0, SEEDS_SD) * len(right))
    seed = right.copy()
    seed[rng.permutation(np.flatnonzero(right == (count < 0)))[: abs(count)]] = int(count > 0)
    return scored(seed)


def shown(rng, n, seeds, control, effect):
    """Whether the product's own interval leaves out 0 in one draw of rows and seeds."""
    one = DISAGREEMENT / 2
    kinds = rng.choice(4, n, p=[one + effect, one, 0.7 * (1 - 2 * one - effect), 0.3 * (1 - 2 * one - effect)])
    fit, other = np.isin(kinds, (0, 2)).astype(int), np.isin(kinds, (1, 2)).astype(int)
    if seeds == 1:
        return gain(accuracy, scored(fit), scored(other)).low > 0
    if control == "linear probe":
        probe = scored(other)
        return decide(accuracy, [(seed_of(rng, fit), probe) for _ in range(seeds)], paired=True).gain.low > 0
    return decide(accuracy, [(seed_of(rng, fit), seed_of(rng, other)) for _ in range(seeds)]).gain.low > 0


@pytest.mark.parametrize(
    ("seeds", "n", "control"),
    [(3, 100, "scratch"), (3, 1_000, "scratch"), (10, 300, "scratch"), (3, 300, "linear probe"), (1, 100, "scratch")],
)
def test_the_stated_gain_is_shown_four_times_in_five(seeds, n, control):
    rng = np.random.default_rng(seeds + n)
    effect = detectable_gain(n, seeds, control)
    found = np.mean([shown(rng, n, seeds, control, effect) for _ in range(250)])  # standard error 0.025
    assert found == pytest.approx(0.8, abs=0.075)


def test_over_rows_alone_by_hand():
    effect = detectable_gain(400, 1)
    share = DISAGREEMENT + effect
    seen = ((400 * share + 1) / 402 - (400 * effect / 402) ** 2) / 402
    half = stats.t.ppf(0.975, 399) * np.sqrt(seen)
    assert effect == pytest.approx(half + stats.norm.ppf(0.8) * np.sqrt((share - effect**2) / 400), abs=1e-4)


def test_more_rows_and_seeds_show_less():
    of_rows = [detectable_gain(n, 3) for n in (30, 100, 1_000, 10_000)]
    assert of_rows == sorted(of_rows, reverse=True)
    assert of_rows[-1] > 2.5 * SEEDS_SD * np.sqrt(2 / 3)  # no number of rows makes up for the seeds
    of_seeds = [detectable_gain(300, s) for s in (3, 5, 10)]
    assert of_seeds == sorted(of_seeds, reverse=True)
    assert detectable_gain(300, 3, "linear probe") < detectable_gain(300, 3)  # one arm alone varies
    assert detectable_gain(300, 3, level=0.99) > detectable_gain(300, 3)
    assert power(detectable_gain(300, 3), 300, 3) == pytest.approx(0.8, abs=1e-3)


def test_in_words():
    said = in_words(100, 3)
    assert said.startswith(f"3 seeds and 100 test rows show a gain of {100 * detectable_gain(100, 3):.2g} points of ")
    assert "over scratch four times in five, assuming" in said and "2 points (sd)" in said and "1 row in 10" in said
    one = in_words(100, 1, "linear probe")
    assert "about these models, not the method" in one and "(sd)" not in one and "over linear probe" not in one
    assert "however large" in in_words(3, 3) and detectable_gain(1, 3) is None


def test_groups_count_once():
    rows = [Example(f"r{i}-0", ("1.0",), ("a",), f"row {i}", f"g{i // 5}") for i in range(200)]
    said = before_run(rows, class_task("a", "b"), 3, "scratch")
    assert said == in_words(40, 3, unit="groups of test rows")
    assert before_run([], class_task("a", "b"), 3, "scratch") is None
    import torch

    plain = spell_rows(torch.zeros(200, 1), ["a"] * 200)
    assert before_run(plain, class_task("a", "b"), 3, "scratch") == in_words(200, 3)
