"""Cross-validation that was asked for: no val, test untouched, no row judged by a model that saw it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft
from regraft.errors import DataError, PlanError

SETTINGS = {"run.threads": 1, "fit.epochs": 1, "fit.batch_size": 16, "source.image_size": 32}


def fit(data: Path, weights: Path, out: Path, **settings: Any) -> dict[str, Any]:
    more = SETTINGS | {"source.weights": str(weights)} | settings
    regraft.fit(data, source="timm:test_resnet", out=out, settings=more)
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def split(run: Path, name: str) -> set[str]:
    rows = map(json.loads, (run / "manifest.jsonl").read_text().splitlines())
    return {r["id"] for r in rows if r["split"] == name}


def test_folds_take_the_place_of_val_and_leave_test_alone(pictures: Path, weights: Path, tmp_path: Path) -> None:
    plain = fit(pictures, weights, tmp_path / "plain")
    r = fit(pictures, weights, tmp_path / "folds", **{"data.folds": 4})
    assert plain["rows"]["val"] > 0 and not plain["cross_validation"]
    assert r["rows"] == {"train": 60, "val": 0, "test": 24}
    assert split(tmp_path / "plain", "test") == split(tmp_path / "folds", "test")
    c = r["cross_validation"]
    assert c["folds"] == 4 and r["probe"]["chosen_by"] == "4-fold cross-validation"
    for arm in ("fit", "linear probe"):
        assert c[arm]["accuracy"]["n"] == 60 and c[arm]["accuracy"]["low"] < c[arm]["accuracy"]["value"]
    difference = c["fit"]["accuracy"]["value"] - c["linear probe"]["accuracy"]["value"]
    assert c["gain"]["value"] == pytest.approx(difference)
    assert r["frontier"] is None or r["frontier"]["chosen_by"] == "cross-validation"
    assert [(x["sets"]["by"], x["sets"]["rows"]) for x in (plain, r)] == [
        ("val", plain["rows"]["val"]),
        ("cross-validation", 60),
    ]


@pytest.mark.slow
def test_labels_drawn_by_lot_are_not_learnt_over_folds(weights: Path, tmp_path: Path) -> None:
    """A row judged by a model that saw it would be right: 64 features tell 60 rows apart."""
    from .conftest import picture

    rng = np.random.default_rng(0)
    lines = [("file", "label", "split")]
    for i in range(90):
        picture(tmp_path / "p" / f"{i}.png", (120, 120, 120), i, noise=100)
        lines.append((f"p/{i}.png", "ab"[rng.integers(2)], "train" if i < 60 else "test"))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    r = fit(
        tmp_path / "rows.csv",
        weights,
        tmp_path / "run",
        **{
            "data.folds": 5,
            "data.image": "file",
            "data.label": ["label"],
            "data.split": "split",
            "probe.strengths": [1e-5],
            "fit.lr": 1e-4,
        },
    )
    c = r["cross_validation"]
    for arm in ("fit", "linear probe"):
        assert 0.25 < c[arm]["accuracy"]["value"] < 0.75


def test_more_folds_than_rows_of_a_class_are_refused(make_pictures: Any, weights: Path, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "few", train=3, test=2)
    with pytest.raises(DataError, match=r'folds = 5: train has 3 rows of "amber".*at most 3'):
        fit(data, weights, tmp_path / "run", **{"data.folds": 5})
    assert not (tmp_path / "run").exists()


def test_groups_are_not_torn_apart_by_folds(weights: Path, tmp_path: Path) -> None:
    from regraft.evidence.linear_probe import folds_of

    groups = [f"g{i // 3}" for i in range(60)]
    found = folds_of(["ab"[i % 2] for i in range(60)], groups, 5)
    for train, judged in found:
        assert not {groups[i] for i in train} & {groups[i] for i in judged}
    assert sorted(i for _, judged in found for i in judged) == list(range(60))


def test_balanced_sampling_is_refused_where_it_means_nothing(pictures: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="both make up for rare classes: choose one"):
        fit(pictures, weights, tmp_path / "run", **{"fit.sampling": "balanced", "task.class_weights": "balanced"})
    r = fit(pictures, weights, tmp_path / "ok", **{"fit.sampling": "balanced"})
    assert r["fit"]["epochs"] == 1


def test_more_folds_than_groups_are_refused(weights: Path, tmp_path: Path) -> None:
    from .conftest import picture

    lines = [("file", "label", "split", "plant")]
    for i in range(24):
        picture(tmp_path / "p" / f"{i}.png", (20 + 200 * (i % 2), 120, 120), i)
        lines.append((f"p/{i}.png", "ab"[i % 2], "train" if i < 16 else "test", f"g{i // 8}"))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(DataError, match=r"folds = 4: train has 2 groups.*at most 2"):
        fit(
            tmp_path / "rows.csv",
            weights,
            tmp_path / "run",
            **{
                "data.folds": 4,
                "data.image": "file",
                "data.label": ["label"],
                "data.split": "split",
                "data.group": "plant",
            },
        )


def test_rates_are_tried_from_the_command_line_and_leave_no_file(
    pictures: Path, weights: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [
        "rates",
        pictures,
        "--source",
        "timm:test_resnet",
        "--weights",
        weights,
        "--steps",
        30,
        "--batch-size",
        16,
        "--set",
        "fit.start=random",
        "--set",
        "source.image_size=32",
        "--set",
        "run.threads=1",
    ]
    code, printed, err = cli(*args)
    assert code == 0, err
    assert " --lr " in printed and " --head-lr " in printed
    code, printed, err = cli(*args, "--json", "--freezing", "lora")
    assert code == 0, err
    tried = json.loads(printed)["tried"]
    assert tried[0]["factor"] == pytest.approx(0.01) and len(tried) <= 30
    assert list(tmp_path.iterdir()) == []


def test_calibrated_probabilities_are_those_the_run_reported(
    pictures: Path, weights: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("regraft.evidence.calibration.PRIOR_SCALE", 1e6)  # 12 rows of val leave T at 1 otherwise
    r = fit(pictures, weights, run, **{"evaluate.max_error": 0.3})
    t = r["calibration"]["temperature"]
    assert abs(np.log(t)) > 1e-3  # else nothing is tested
    with (run / "predictions.csv").open(newline="") as file:
        saved = {row["where"]: row for row in csv.DictReader(file)}
    model = regraft.load(run)
    inputs = sorted((pictures / "test").rglob("*.png"))
    for plain, cool in zip(model.predict(inputs), model.calibrated().predict(inputs), strict=True):
        powers = {c: p ** (1 / t) for c, p in plain.scores.items()}
        assert cool.label == plain.label
        for name, power in powers.items():
            assert cool.scores[name] == pytest.approx(power / sum(powers.values()), abs=1e-5)
    assert len(saved) == 24
    code, printed, err = cli("evaluate", run, pictures, "--calibrated", "--json")
    assert code == 0, err
    reported = r["calibration"]["after"]["log_loss"]["value"]
    assert json.loads(printed)["log_loss"]["value"] == pytest.approx(reported, abs=1e-5)
    kept = {"data.val": 0.0, "fit.start": "random", "fit.lr": 1e-5}
    without = fit(pictures, weights, tmp_path / "without", **kept)
    assert without["calibration"] is None
    code, printed, err = cli("predict", tmp_path / "without", pictures / "test", "--calibrated")
    assert code == 2 and "fitted no temperature" in err and not printed
    assert without["sets"]["rows"] == 0
    code, printed, err = cli("predict", tmp_path / "without", pictures / "test", "--sets")
    assert code == 2 and "no 90 % sets: they need 9 held-out rows, and there are 0" in err and not printed
    code, printed, err = cli("predict", run, inputs[0], "--sets", "--json")
    first = model.predict(inputs[:1], sets=True)[0]
    assert code == 0 and json.loads(printed)["classes"] == list(first.classes)
    assert r["abstention"]["accepted_rows"] >= 9 and json.loads(printed)["accepted"] is first.accepted is True
    assert r["abstention"]["accepted"]["value"] == np.mean([p.accepted for p in model.predict(inputs, sets=True)])


def test_over_folds_the_temperature_comes_from_rows_that_no_model_saw(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    from regraft.evidence.calibration import fit_temperature
    from regraft.evidence.scoring import score
    from regraft.pipeline.arms import ArmFitter
    from regraft.pipeline.folds import FoldFitter

    settings = {"data.folds": 3, "fit.alpha": 1.0, "fit.start": "soft", "fit.lr": 1e-6, "fit.head_lr": 1e-6}
    found = fit(pictures, weights, tmp_path / "run", **settings)["calibration"]
    job = prepared(pictures, weights, **settings)
    folds = FoldFitter(ArmFitter(job))
    cross = folds.cross_validate(job.source, job.spec.settings, lambda: job.outputs.features("train"))
    rows = score(cross.rows[1.0], job.data.task, job.data.splits.train)
    assert (found["fitted_on"], found["fitted_by"]) == (60, "cross-validation")
    assert found["temperature"] == pytest.approx(fit_temperature(rows))
    assert found["temperature"] < 0.9  # a soft head is less sure than right


@pytest.mark.slow
def test_the_model_after_folds_is_the_mean_of_their_weights_or_one_more_fit(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from regraft.model.weights import snapshot
    from regraft.pipeline.arms import ArmFitter
    from regraft.pipeline.job import fit_start

    settings = {"data.folds": 3, "fit.alpha": 1.0, "fit.lr": 9e-4, "fit.head_lr": 1e-2, "run.seeds": 2}
    average = fit(pictures, weights, tmp_path / "average", **settings, **{"fit.after_folds": "average"})
    refit = fit(pictures, weights, tmp_path / "refit", **settings)
    job = prepared(pictures, weights, **settings)
    fitter, ends = ArmFitter(job), []
    for rows, _ in job.data.folds():
        start = fit_start({"train": job.outputs.features("train")}, job.data, job.plan, rows)
        target = job.initial_target(job.source, 0, start.probe)
        fitter.fit_rows(target, job.spec.settings, 0, rows=rows)
        ends.append(snapshot(target))
    model = load_file(tmp_path / "average" / "model" / "model.safetensors")
    assert model.keys() == ends[0].keys()
    for name, tensor in model.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, sum(e[name].double() for e in ends).div(3).float(), atol=1e-6), name
    other = load_file(tmp_path / "refit" / "model" / "model.safetensors")
    moved = [name for name, t in model.items() if not torch.allclose(t, other[name], atol=1e-6)]
    assert any(name.startswith("backbone") for name in moved)
    assert average["fit"]["steps"] == 3 * 3 and refit["fit"]["steps"] == 4  # 40 rows and 60 rows in batches of 16
    assert average["fit"]["stopped"] == "the average of 3 folds' weights"
    first, second = average["seeds"]
    assert first["test"]["log_loss"] != second["test"]["log_loss"]
    lines = [json.loads(x) for x in (tmp_path / "average" / "history.jsonl").read_text().splitlines()]
    assert [(x["seed"], x["epoch"]) for x in lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    said = [line[20:] for line in (tmp_path / "average" / "log.txt").read_text().splitlines()]  # after the time
    assert [x for x in said if x.endswith(" of 3")] == [
        f"{x} {k} of 3" for x in ("fold", "seed 1 fold") for k in (1, 2, 3)
    ]


def test_folds_estimate_a_fit_without_a_probe_too(pictures: Path, weights: Path, tmp_path: Path) -> None:
    r = fit(pictures, weights, tmp_path / "run", **{"data.folds": 3, "fit.start": "random"})
    assert set(r["cross_validation"]) == {"folds", "fit"} and r["frontier"] is None
    assert r["cross_validation"]["fit"]["accuracy"]["n"] == 60
    said = str(regraft.api.Run.read(tmp_path / "run"))
    assert "3 folds of train, n = 60   α = 1 0." in said


def prepared(pictures: Path, weights: Path, **settings: Any) -> Any:
    from regraft.pipeline.prepare import prepare
    from regraft.plan.read import read_plan

    known = {"source.ref": "timm:test_resnet", "source.weights": str(weights), "data.path": str(pictures)}
    return prepare(read_plan(None, SETTINGS | known | settings))


def test_rows_over_folds_come_in_the_order_of_train(pictures: Path, weights: Path, tmp_path: Path) -> None:
    """Groups and ids are put beside them by position."""
    from regraft.pipeline.arms import ArmFitter
    from regraft.pipeline.folds import FoldFitter
    from regraft.training.checkpoints import CheckpointManager

    p = prepared(pictures, weights, **{"data.folds": 3})
    fitter = FoldFitter(ArmFitter(p, CheckpointManager(tmp_path)))
    found = fitter.cross_validate(p.source, p.spec.settings, None)
    assert found.folds == 3 and list(found.rows) == [1.0]
    assert found.rows[1.0].ids == tuple(e.id for e in p.data.splits.train)
    assert found.rows[1.0].targets.tolist() == p.data.targets["train"].tolist()


def test_balanced_sampling_reaches_training_and_nothing_else(pictures: Path, weights: Path) -> None:
    p = prepared(pictures, weights, **{"fit.sampling": "balanced"}).data
    train = p.batches("train", [0, 3, 5], train=True)
    assert train.order.strata == [p.strata[i] for i in (0, 3, 5)]
    assert p.batches("train").order.strata is None and p.batches("val").order.strata is None
    assert prepared(pictures, weights).data.batches("train", train=True).order.strata is None


def test_the_table_counts_what_lora_trains(pictures: Path, weights: Path) -> None:
    full = {b.name: b for b in prepared(pictures, weights).notes.blocks}
    few = {b.name: b for b in prepared(pictures, weights, **{"freezing.name": "lora"}).notes.blocks}
    wide = prepared(pictures, weights, **{"freezing.name": "lora", "freezing.rank": 16}).notes.blocks
    assert few["head"] == full["head"]
    for block in wide:
        if block.name != "head":  # twice the rank, twice the numbers
            assert block.parameters == 2 * few[block.name].parameters
            assert block.state == full[block.name].state == "kept"


def test_a_soft_start_is_the_strongest_probe_and_its_frontier_begins_at_the_chosen_one(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    from regraft.pipeline.finish import read_ends

    settings = {"fit.lr": 9e-4, "fit.head_lr": 1e-2}
    hard = fit(pictures, weights, tmp_path / "probe", **settings, **{"fit.start": "probe"})
    soft = fit(pictures, weights, tmp_path / "soft", **settings, **{"fit.start": "soft"})
    assert soft["probe"] == hard["probe"] and soft["controls"] == hard["controls"]
    assert soft["val_controls"]["linear probe"] == pytest.approx(hard["val_controls"]["linear probe"], abs=1e-4)
    assert soft["fit"]["start"]["loss"] > 2 * hard["fit"]["start"]["loss"]  # it is far from fitted
    strongest = {"probe.strengths": [10.0], "fit.start": "probe"}
    alone = fit(pictures, weights, tmp_path / "strongest", **settings, **strongest)
    for figures in ("start", "best"):
        assert soft["fit"][figures] == pytest.approx(alone["fit"][figures], abs=1e-5)
    (start, end), (other, _) = (read_ends(tmp_path / run) for run in ("soft", "probe"))
    assert all(torch.equal(start[name], other[name]) for name in other)
    assert not torch.equal(start["head.weight"], end["head.weight"])


def test_where_no_epoch_beats_a_soft_start_the_probe_is_the_model(
    pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("regraft.training.loop.improves", lambda new, old, metric: False)
    r = fit(pictures, weights, tmp_path / "soft", **{"fit.start": "soft"})
    probe = fit(pictures, weights, tmp_path / "probe", **{"fit.start": "probe"})
    assert r["fit"]["best_epoch"] == 0 and r["seeds"][0]["alpha"] == 0
    a, b = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("soft", "probe"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert r["test"] == r["controls"]["linear probe"] == probe["test"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fit.start": "random"}, "heads drawn at random do not average"),
        ({"fit.batch_norm": "train"}, "statistics of batch norms do not average"),
    ],
)
def test_what_does_not_average_is_refused(pictures: Path, weights: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        prepared(pictures, weights, **{"data.folds": 3, "fit.after_folds": "average"}, **settings)
