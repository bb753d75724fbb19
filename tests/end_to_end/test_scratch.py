"""The scratch control in a whole run: what holds it back is left out, and a rate that diverges too."""

from __future__ import annotations

import json
import tomllib

import pytest

import regraft
from builders import largest_source, write_largest
from regraft.errors import DivergedError
from regraft.pipeline.arms import ArmFitter


@pytest.fixture
def fit(tmp_path):
    """Fit ``rows`` training rows, whose class is the largest of three numbers; the run's folder."""

    def run(rows, **settings):
        write_largest(tmp_path / "train.csv", rows)
        write_largest(tmp_path / "test.csv", 90)
        source = largest_source()
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        given = {
            "data.text": ["text"],
            "data.label": ["label"],
            "evaluate.controls": ["scratch"],
            "evaluate.scratch_rates": [3.0],
            "fit.epochs": 2,
            "fit.batch_size": 16,
            "fit.lr": 5e-4,
            "fit.head_lr": 5e-4,
            "fit.scratch_lr": 1e-2,
            "fit.sharpness": 0.0,
            "run.threads": 1,
            "probe.strengths": [0.01],
        } | {name.replace("__", "."): value for name, value in settings.items()}
        regraft.fit(tmp_path, source=source, out=out, settings=given)
        return out

    return run


def scratch(out):
    return json.loads((out / "result.json").read_text())["seeds"][0]["scratch"]


MUCH = [{"fit__average": 0.999}, {"fit__weight_decay": 50.0}, {"regularizers__l2__strength": 50.0}]


@pytest.mark.slow
@pytest.mark.parametrize("much", MUCH, ids=lambda m: next(iter(m)))
def test_settings_for_kept_weights_do_not_hold_scratch_back(fit, much):
    """An average over the whole fit, and a decay and a penalty that its rate cannot bear."""
    plain, held = (fit(120, evaluate__scratch_budget=15.0, **more) for more in ({}, much))
    assert scratch(held) == scratch(plain) and scratch(plain)["accuracy"] > 0.6
    result = json.loads((held / "result.json").read_text())
    assert result["scratch"]["chosen"] == "rate 0.03 alone, chosen by val"


@pytest.mark.parametrize("rows", [pytest.param(40, marks=pytest.mark.slow), 120])  # by folds, and on val
def test_a_rate_that_diverges_is_out_and_all_of_them_end_the_run(fit, rows):
    one = fit(rows, evaluate__scratch_rates=[1.0])
    for rates in ([1e30, 1.0], [1e-30, 1.0]):  # itself, and the one beyond
        some = fit(rows, evaluate__scratch_rates=rates)
        assert scratch(some) == scratch(one)
        assert "scratch 1e+28 is out: the " in (some / "log.txt").read_text()
    with pytest.raises(DivergedError, match=r"\(1e\+26, 1e\+27, 1e\+28\).*evaluate\.scratch_rates"):
        fit(rows, evaluate__scratch_rates=[1e29, 1e30])


def test_a_rate_that_diverges_with_a_later_seed_is_named(fit, monkeypatch):
    once = ArmFitter.fit

    def diverges(self, *args, label, **more):
        if label == "scratch 0.03, seed 1":
            raise DivergedError("the loss is not finite at step 7")
        return once(self, *args, label=label, **more)

    monkeypatch.setattr(ArmFitter, "fit", diverges)
    with pytest.raises(DivergedError, match=r"rate 0\.03.* seed 1.*evaluate\.scratch_rates .*not finite at step 7"):
        fit(120, run__seeds=2)


def test_beside_a_pull_to_the_source_scratch_has_the_usual_decay(fit):
    out = fit(120, regularizers__l2_sp__alpha=0.1)
    assert tomllib.loads((out / "plan.toml").read_text())["fit"]["weight_decay"] == 0
    assert scratch(out) == scratch(fit(120))
    assert json.loads((out / "result.json").read_text())["scratch"]["chosen"].startswith("rate 0.03,")


def test_beyond_an_outermost_best_rate_another_is_tried(fit):
    out = fit(120, evaluate__scratch_rates=[0.001, 0.003], evaluate__scratch_budget=5.0)
    result = json.loads((out / "result.json").read_text())
    assert result["scratch"]["chosen"] == "rate 0.00027, chosen by val"
