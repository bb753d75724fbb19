"""What a run says first: twelve situations and the sentence that each gets."""

from __future__ import annotations

import pytest

from regraft.runs.answers import answers, far_seeds
from result_json import estimate, parsed, seed, source_retention

NONE = {"value": 0.0, "low": None, "high": None, "n": 8}


def said(*, trivial=None, probe=None, baseline="majority", **changes):
    """Return the sentences of a run with these gains over the trivial answer and over the probe."""
    gains = {baseline: trivial or estimate(0.4)}
    if probe is not None:
        gains |= {"linear probe": probe}
    controls = {name: {"accuracy": estimate(0.3)} for name in gains}
    three = {"test": {"accuracy": estimate(0.8), "macro_f1": estimate(0.7)}}
    return list(answers(parsed(**(three | {"gain": gains, "controls": controls} | changes))))


FIT = {
    "best_epoch": 3,
    "epochs": 6,
    "steps": 60,
    "best": {"accuracy": 0.8},
    "start": {"accuracy": 0.7},
    "stopped": "ran all epochs",
    "fitted": True,
}

SITUATIONS = {
    "works": ({}, 0, "the model works: accuracy 0.800 on 60 rows that it never saw, +0.400 [+0.300, +0.500]"),
    "worse than trivial": ({"trivial": estimate(-0.4)}, 0, "not usable: worse than always giving the most frequent"),
    "no better than the mean": (
        {"trivial": estimate(-0.05), "baseline": "mean"},
        0,
        "not usable yet: no better than always answering the mean",
    ),
    "too few rows to tell": ({"trivial": estimate(0.05)}, 0, "not shown to work: 60 test rows cannot tell it from"),
    "rows that are all alike": ({"trivial": NONE}, 0, "not decided whether the model works: its 60 test rows"),
    "fine-tuning adds": (
        {"probe": estimate(0.2), "fit": FIT},
        1,
        "fine-tuning adds +0.200 [+0.100, +0.300] to the linear probe (about these two models)",
    ),
    "fine-tuning adds, over seeds": (
        {
            "probe": estimate(0.2),
            "fit": FIT,
            "seeds": [seed(0), seed(1), seed(2)],
            "gains_over_seeds": ["scratch", "linear probe"],
        },
        1,
        "to the linear probe (over 3 seeds)",
    ),
    "fine-tuning hurts": (
        {"probe": estimate(-0.2), "fit": FIT},
        1,
        "fine-tuning is worse than the linear probe, -0.200",
    ),
    "fine-tuning undecided": (
        {"probe": estimate(0.02), "fit": FIT},
        1,
        "not decided whether fine-tuning adds to the linear probe: a gain above 0.120 or a loss beyond 0.080",
    ),
    "probe saved by folds": (
        {"probe": estimate(0.0), "fit": FIT | {"fitted": False}},
        1,
        "the saved model is the linear probe: over the folds",
    ),
    "probe saved on val": (
        {"probe": estimate(0.0), "fit": FIT | {"best_epoch": 0}},
        1,
        "the saved model is the linear probe: on val",
    ),
    "source not measured": ({}, -1, "not measured what the source task lost: --source-data"),
    "source forgotten": (
        {"retention": source_retention(forgetting=estimate(0.2), claim=True)},
        -1,
        "the source task lost +0.200 [+0.100, +0.300] of accuracy",
    ),
    "source kept": (
        {"retention": source_retention(forgetting=estimate(0.01), claim=True)},
        -1,
        "no loss of the source task is shown: one beyond 0.110 of accuracy is ruled out",
    ),
    "source rows too few": (
        {"retention": source_retention(forgetting=estimate(0.01), claim=False)},
        -1,
        "under 200 source rows, so this is no claim",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_has_its_sentence(name):
    changes, place, words = SITUATIONS[name]
    assert words in said(**changes)[place]


@pytest.mark.parametrize(("third", "far"), [(0.30, True), (0.76, False), (0.99, False)])
def test_a_seed_far_from_the_others_is_named(third, far):
    values = (0.80, 0.82, third)
    seeds = [seed(i, test={"accuracy": v}, scratch={"accuracy": 0.5}) for i, v in enumerate(values)]
    found = list(far_seeds(parsed(seeds=seeds, test={"accuracy": estimate(0.8), "macro_f1": estimate()})))
    assert len(found) == far
    assert not far or ("Seed 2 of the fit" in found[0] and "0.300, they are 0.800 to 0.820" in found[0])


def test_nothing_kept_has_no_source_to_lose():
    random = parsed().source.model_dump() | {"nothing_kept": True}
    assert len(said(source=random)) == 1
