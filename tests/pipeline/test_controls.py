"""The scratch control is no straw man: nothing meant for kept weights holds it back."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regraft.errors import DivergedError
from regraft.model import reinitialise
from regraft.pipeline.resolve import scratch_budget
from regraft.pipeline.scratch import scratch_settings, search
from regraft.regularizers.l2 import L2
from regraft.training.settings import Settings

BARE = Settings(epochs=4, rates={"a": 1e-4, "head": 1e-3}, weight_decay=0.01)
FITS = replace(BARE, average=0.999, sharpness=0.1)


def budget_of(settings, factors=(0.3, 1.0, 3.0), penalties=(), share=5.0, has_val=True):
    """The budget of a plan with these scratch rates over 0.001 and these penalties."""
    plan = SimpleNamespace(
        fit=SimpleNamespace(optimizer="AdamW", scratch_lr=1e-3),
        evaluate=SimpleNamespace(scratch_rates=factors, scratch_budget=share),
        plugins=SimpleNamespace(pulling=[], regularizers={name: L2() for name in penalties}),
    )
    return scratch_budget(plan, settings, has_val=has_val)


def found(settings, score, factors=(0.3, 1.0, 3.0), penalties=()):
    """What ``search`` ends with, and every name and settings that it tried, in order."""
    budget = budget_of(settings, factors, penalties)
    tried = []

    def judged(every):
        tried.extend(every.items())
        assert len(tried) <= budget.tries
        return {name: score(chosen) for name, chosen in every.items()}

    return search(settings, budget, judged, lambda a, b: a > b, -inf), tried, budget


def test_every_rate_is_tried_bare_and_the_best_with_penalties():
    def score(s):
        return -abs(s.rates["head"] - 1e-3) - 10 * s.average  # worse with an average

    (name, chosen, best), tried, budget = found(FITS, score)
    assert [n for n, _ in tried] == [
        "0.0003 alone",
        "0.001 alone",
        "0.003 alone",
        "0.001 with average 0.999 and sharpness 0.1",
    ]
    assert all(s.average == s.sharpness == 0 for _, s in tried[:3])
    with_both = tried[3][1]
    assert (with_both.average, with_both.sharpness) == (0.999, 0.1)
    bare = scratch_settings(FITS, budget, 1e-3)
    assert with_both == replace(bare, average=0.999, sharpness=0.1, penalties=True)
    assert (name, chosen, best) == ("0.001 alone", bare, 0.0)
    assert set(chosen.rates.values()) == {1e-3} and chosen.batch_norm == "train"
    assert "alone or with the fit's average 0.999 and sharpness 0.1" in str(budget)


def test_where_scratch_is_better_with_it_it_has_it():
    (name, chosen, _), _, _ = found(FITS, lambda s: s.average - abs(s.rates["head"] - 1e-3))
    assert name == "0.001 with average 0.999 and sharpness 0.1"
    assert chosen.average == 0.999 and set(chosen.rates.values()) == {0.001}


def test_without_penalties_the_first_of_equal_rates_stands():
    (name, _, _), tried, budget = found(BARE, lambda s: s.rates["head"] == 1e-3)
    assert name == "0.001" and len(tried) == 3
    (name, _, _), tried, budget = found(BARE, lambda s: 1.0, [1.0, 3.0, 1.0])
    assert name == "0.001" and [n for n, _ in tried] == ["0.001", "0.003", "0.000333333"]
    assert str(budget).endswith("the best rate of 0.001, 0.003 and beyond where the best is the outermost")


def test_beyond_an_outermost_best_rate_at_most_two_are_tried():
    def reached(best, **more):
        """The rates that were tried where ``best`` is the best one of all."""
        (name, _, _), tried, budget = found(BARE, lambda s: -abs(log(s.rates["a"] / best)), **more)
        assert len(tried) <= budget.tries
        return [n for n, _ in tried], name

    first = ["0.0003", "0.001", "0.003"]
    assert reached(1e-3) == (first, "0.001")
    assert reached(3e-3) == ([*first, "0.009"], "0.003")
    assert reached(9e-3) == ([*first, "0.009", "0.027"], "0.009")
    assert reached(1.0) == ([*first, "0.009", "0.027"], "0.027")
    assert reached(1e-4) == ([*first, "9e-05", "2.7e-05"], "9e-05")
    assert reached(1.0, factors=[1.0]) == (["0.001"], "0.001")  # one rate is no search


def test_scratch_has_decay_and_penalties_only_where_they_help():
    """A decay of one's own, or none beside a pull to the source, and penalties that need no source."""

    def score(s):
        return -abs(s.rates["a"] - 1e-3)

    given = replace(BARE, weight_decay=0.3)
    (name, chosen, _), tried, budget = found(given, score, penalties=["l2"])
    assert [s.weight_decay for _, s in tried] == [0.01, 0.01, 0.01, 0.3]
    assert [s.penalties for _, s in tried] == [False, False, False, True]
    assert tried[-1][0] == "0.001 with weight decay 0.3 and l2"
    assert (name, chosen.weight_decay, chosen.penalties) == ("0.001 alone", 0.01, False)
    assert str(budget).endswith(", alone or with the fit's weight decay 0.3 and l2")
    (name, chosen, _), _, _ = found(given, lambda s: s.penalties + score(s), penalties=["l2"])
    assert (name, chosen.weight_decay, chosen.penalties) == (tried[-1][0], 0.3, True)


def test_all_that_diverged_are_named_and_fits_are_counted():
    with pytest.raises(DivergedError, match=r"\(9e-05, 0\.0003, 0\.001, 0\.003\)"):
        found(BARE, lambda s: -inf)
    budget = budget_of(BARE)
    assert budget.tries == 5
    assert budget.fits(seeds=3, folds=0) == 5 + 2  # of the first seed, and of the others
    assert budget.fits(seeds=3, folds=5) == 5 * 5 * 4 / 5 + 3


def test_the_budget_is_never_less_than_the_fit_has():
    budgets = [budget_of(FITS, [1.0], share=share, has_val=False) for share in (0.1, 1.1, 5.0)]
    assert [b.epochs for b in budgets] == [4, 5, 20] and budgets[0].patience == 0


def test_of_equal_ones_the_bare_stands():
    (name, chosen, _), _, _ = found(FITS, lambda s: 1.0)
    assert name == "0.0003 alone" and chosen.average == 0


def test_a_modules_own_parts_hold_in_the_scratch_control():
    """A parent's reset_parameters may set its children otherwise than they would."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.zeros_(self.inner.weight)

    net = nn.Sequential(nn.Linear(3, 3), Gated())
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    reinitialise.reset(net)
    assert not net[1].inner.weight.any()
    assert all((p != 7.0).all() for p in net.parameters())
