"""On an accelerator the same fits come out, and they leave models that any machine reads."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import regraft

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]
EXACT = ("--set", "run.precision=float32", "--set", "run.feature_precision=float32")


@pytest.fixture
def fit(pictures, weights, tmp_path, cli):
    given = ("--source", "timm:test_resnet", "--weights", weights, "--set", "source.image_size=32")

    def call(name, *more, code=0, source=given):
        found, _, err = cli(
            "fit",
            pictures,
            *source,
            "--set",
            "fit.start=random",
            "--head-lr",
            0.03,
            "--epochs",
            2,
            "--batch-size",
            8,
            "--quiet",
            "--out",
            tmp_path / name,
            *more,
        )
        assert found == code, err
        return tmp_path / name

    return call


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def predictions(run):
    with (run / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    numbers = [i for i, name in enumerate(header) if name in ("p(amber)", "p(navy)", "p(olive)")]
    assert len(numbers) == 3
    return np.array([[float(row[i]) for i in numbers] for row in sorted(rows)])


def test_a_fit_on_the_gpu_is_that_of_the_cpu(fit):
    there = fit("gpu", "--set", "run.device=cuda", *EXACT)
    here = fit("cpu", "--set", "run.device=cpu", *EXACT)
    assert json.loads((there / "environment.json").read_text())["device"].startswith("cuda")
    terms = [[epoch["terms"].get("task", 0) for epoch in history(run)] for run in (there, here)]
    assert terms[0][-1] > 0 and terms[0] == pytest.approx(terms[1], rel=0.05)
    assert np.abs(predictions(there) - predictions(here)).max() < 0.05


def test_the_gpu_is_chosen_and_what_was_measured_is_in_the_plan(fit):
    plan = (fit("auto") / "plan.toml").read_text()
    assert 'device = "cuda"' in plan and "precision = " in plan


def test_bfloat16_is_right_to_its_rounding(fit):
    half = fit("half", "--set", "run.device=cuda", "--set", "run.precision=bfloat16")
    full = fit("full", "--set", "run.device=cuda", *EXACT)
    losses = [json.loads((run / "result.json").read_text())["test"] for run in (half, full)]
    assert losses[0]["accuracy"]["value"] >= losses[1]["accuracy"]["value"] - 0.1
    assert np.abs(predictions(half) - predictions(full)).max() > 0  # it was bfloat16


def test_a_model_of_the_gpu_predicts_on_the_cpu(fit, pictures):
    run = fit("gpu", "--set", "run.device=cuda", *EXACT)
    files = sorted((pictures / "test").rglob("*.png"))
    found = regraft.load(run).predict(files)
    there = regraft.load(run, device="cuda").predict(files)
    for a, b in zip(found, there, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-3)


def test_a_killed_fit_goes_on(fit, monkeypatch):
    whole = fit("whole", "--set", "run.device=cuda", *EXACT)
    monkeypatch.setenv("REGRAFT_FAILPOINT", "stop step 9")
    left = fit("left", "--set", "run.device=cuda", *EXACT, code=143)
    monkeypatch.delenv("REGRAFT_FAILPOINT")
    fit("left", "--set", "run.device=cuda", *EXACT, "--resume")
    assert np.abs(predictions(left) - predictions(whole)).max() < 0.02


def test_penalties_lie_where_the_model_does(fit):
    base = fit("base", "--set", "run.device=cuda", *EXACT)
    names = ("l2_sp.alpha", "lwf.strength", "ewc.strength", "replay.strength", "delta.strength")
    penalties = [x for name in names for x in ("--set", f"regularizers.{name}=0.01")]
    for device in ("cuda", "cpu"):
        more = ("--source", base, "--set", f"run.device={device}", *EXACT, *penalties)
        lines = (fit(device, *more, source=()) / "history.jsonl").read_text().splitlines()
        terms = json.loads(lines[-1])["terms"]
        assert {"task", "l2_sp", "lwf", "ewc", "replay", "delta"} <= terms.keys()
