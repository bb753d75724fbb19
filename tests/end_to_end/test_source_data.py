"""What fitting cost the source: with a run as the source, with a folder, and with a floor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft
from builders import read_result
from regraft.errors import DataError, PlanError, SourceError, UsageError

from .conftest import Cli


@pytest.fixture(scope="module")
def source_data(make_pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = make_pictures(tmp_path_factory.mktemp("source") / "hard", test=40, noise=200)
    return folder


@pytest.fixture(scope="module")
def source(source_data: Path, weights: Path) -> Path:
    settings = {
        "source.weights": str(weights),
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 3,
        "fit.lr": 0.0005,
        "fit.head_lr": 0.0005,
        "fit.batch_size": 16,
    }
    out = source_data.parent / "source"
    regraft.fit(source_data, source="timm:test_resnet", out=out, settings=settings)
    return out


SETTINGS = {
    "run.threads": 1,
    "fit.epochs": 1,
    "fit.batch_size": 16,
    "fit.lr": 0.0009,
    "fit.head_lr": 0.0009,
    "run.seeds": 2,
}


def manifest(run: Path, split: str) -> int:
    lines = (run / "manifest.jsonl").read_text().splitlines()
    return sum(json.loads(line)["split"] == split for line in lines)


@pytest.fixture(scope="module")
def target(source: Path, pictures: Path) -> Path:
    out = source.parent / "target"
    regraft.fit(pictures, source=str(source), out=out, settings=SETTINGS | {"fit.retain": 0.5})
    return out


def test_a_run_as_the_source_is_measured_on_its_own_test_rows(source: Path, target: Path) -> None:
    kept, own = read_result(target)["retention"], read_result(source)["test"]["accuracy"]
    assert kept["kind"] == "source data"
    assert kept["before"]["value"] == pytest.approx(own["value"])  # the same rows, the same head
    assert kept["before"]["n"] == manifest(source, "test") == 120
    lost = kept["before"]["value"] - kept["after"]["value"]
    assert kept["forgetting"]["value"] == pytest.approx(lost)
    assert len(kept["seeds"]) == 2 and not kept["claim"]


def test_a_plans_score_keeps_the_floor_with_the_model_of_its_run(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.pipeline.arms import ArmFitter
    from regraft.pipeline.trial import score_plan
    from regraft.plan.read import read_plan

    settings = SETTINGS | {"fit.retain": 0.5, "data.folds": 3, "fit.after_folds": "average", "run.seeds": 1}
    regraft.fit(pictures, source=str(source), out=tmp_path / "run", settings=settings)
    front = read_result(tmp_path / "run")["frontier"]

    def fit_again(*args: Any, **how: Any) -> None:
        raise AssertionError("the run's model is an average, and this is one more fit")

    monkeypatch.setattr(ArmFitter, "fit", fit_again)
    scored = score_plan(read_plan(None, settings | {"source.ref": str(source), "data.path": str(pictures)}))
    (point,) = (p for p in front["points"] if p["alpha"] == front["alpha"])
    assert scored.alpha == front["alpha"] and point["source"]["low"] >= 0.5
    assert scored.figures["accuracy"] == point["figures"]["accuracy"]


def test_the_floor_holds_on_the_rows_it_was_chosen_on(target: Path) -> None:
    front = read_result(target)["frontier"]
    points = {p["alpha"]: p for p in front["points"]}
    assert front["retain"] == 0.5 and len(points) == 11
    assert points[0.0]["source"]["ratio"] == 1
    chosen = points[front["alpha"]]
    assert chosen["source"]["low"] >= 0.5
    best = max(p["figures"]["accuracy"] for p in points.values() if p["source"]["low"] >= 0.5)
    assert chosen["figures"]["accuracy"] == best


def test_the_summary_says_what_was_forgotten(target: Path, cli: Cli) -> None:
    from regraft.runs.result import finished
    from regraft.runs.summary import summary

    said = summary(target, finished(target))
    assert "keeping 0.5 of the source with 95 % confidence" in said
    assert "forgetting" in said and "n = 120 source rows; under 200 rows: no claim" in said


def test_missing_source_data_leave_a_proxy_and_a_note(
    source: Path, source_data: Path, pictures: Path, tmp_path: Path
) -> None:
    moved = source_data.with_name("elsewhere")
    source_data.rename(moved)
    try:
        said: list[str] = []
        run = tmp_path / "run"
        regraft.fit(pictures, source=str(source), out=run, settings=SETTINGS, say=said.append)
        assert any("forgetting is seen by a proxy alone" in line for line in said)
        assert read_result(run)["retention"]["kind"] == "agreement on target inputs"
        with pytest.raises(PlanError, match=r'"replay" needs labelled source data \(.* does not exi'):
            regraft.fit(
                pictures,
                source=str(source),
                out=tmp_path / "other",
                settings=SETTINGS | {"regularizers.replay.strength": 1.0},
            )
    finally:
        moved.rename(source_data)


def test_data_of_the_source_that_changed_are_not_taken(
    source: Path, source_data: Path, pictures: Path, tmp_path: Path
) -> None:
    new = source_data / "train" / "navy" / "new.png"
    shutil.copy(next((pictures / "train" / "navy").iterdir()), new)
    try:
        said: list[str] = []
        regraft.fit(pictures, source=str(source), out=tmp_path / "run", settings=SETTINGS, say=said.append)
        assert any("has changed since the run" in line for line in said)
    finally:
        new.unlink()


def test_penalties_draw_from_a_folder_that_is_named(
    source: Path, source_data: Path, pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    code, _, err = cli(
        "fit",
        pictures,
        "--source",
        source,
        "--source-data",
        source_data / "test",
        "--out",
        run,
        "--epochs",
        1,
        "--set",
        "fit.lr=0.0009",
        "--set",
        "fit.head_lr=0.0009",
        "--set",
        "regularizers.ewc.examples=10",
        "--set",
        "regularizers.replay.strength=1",
        "--quiet",
    )
    assert code == 0, err
    kept = read_result(run)["retention"]
    assert kept["before"]["n"] < 60  # a quarter of 120
    terms = [json.loads(line)["terms"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert terms[1]["ewc"] >= 0 and terms[1]["replay"] > 0
    again = tmp_path / "again"
    assert cli("fit", run / "plan.toml", "--out", again, "--quiet")[0] == 0
    files = [r / "model" / "model.safetensors" for r in (run, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def refused(source: Path, pictures: Path, tmp_path: Path, **settings: Any) -> None:
    regraft.fit(pictures, source=str(source), out=tmp_path / "no", settings=SETTINGS | settings)


def test_a_floor_that_cannot_be_kept_is_refused_before_training(source: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"keep 1 of .* only 0\.\d"):
        refused(source, pictures, tmp_path, **{"fit.retain": 1.0})
    assert not (tmp_path / "no" / "history.jsonl").exists()
    with pytest.raises(PlanError, match=r'fit\.retain chooses α: set fit\.alpha to "chosen"'):
        refused(source, pictures, tmp_path / "b", **{"fit.retain": 0.5, "fit.alpha": 0.5})
    with pytest.raises(PlanError, match=r"fit\.retain .*--source-data"):
        settings = {"fit.retain": 0.5, "source_data.path": "none"}
        refused(source, pictures, tmp_path / "c", **settings)


def test_labels_of_another_task_are_refused(source: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "test" / "navy", tmp_path / "data" / "cat")
    shutil.copytree(pictures / "test" / "olive", tmp_path / "data" / "olive")
    with pytest.raises(DataError, match=r'8 labels that cannot be used: .*"cat" is not a class'):
        refused(source, pictures, tmp_path, **{"source_data.path": str(tmp_path / "data")})


# ---------------------------------------------------------------- another point, without training


def test_another_floor_is_another_point_without_training(target: Path, cli: Cli) -> None:
    code, out, _ = cli("frontier", target)
    points = read_result(target)["frontier"]["points"]
    assert code == 0 and len(out.splitlines()) == 14
    free = max(points, key=lambda p: (p["figures"]["accuracy"], -p["figures"]["loss"]))
    assert f"α = {free['alpha']:g} is best by val" in out
    floor = round(sorted(p["source"]["low"] for p in points)[-2] - 0.001, 3)
    code, out, _ = cli("frontier", target, "--retain", floor, "--json")
    said = json.loads(out)
    assert points[round(10 * said["chosen"])]["source"]["low"] >= floor
    code, out, err = cli("frontier", target, "--retain", 1, "--json")
    assert code == 0 and json.loads(out)["chosen"] == 0, err  # the source itself


def test_a_chosen_point_becomes_a_run_that_its_plan_makes_again(target: Path, cli: Cli) -> None:
    points = read_result(target)["frontier"]["points"]
    floor = round(points[2]["source"]["low"] - 0.001, 3)
    new, again = target.parent / "chosen", target.parent / "again"
    code, out, err = cli("frontier", target, "--retain", floor, "--out", new)
    assert code == 0, err
    assert f"keeping {floor:g} of the source with 95 % confidence" in out
    assert cli("fit", new / "plan.toml", "--out", again, "--quiet")[0] == 0
    files = [r / "model" / "model.safetensors" for r in (new, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    a, b = read_result(new), read_result(again)
    assert a["test"] == b["test"] and a["retention"] == {**b["retention"], "opened": a["retention"]["opened"]}
    assert a["frontier"]["alpha"] == b["frontier"]["alpha"]


FOLDED = SETTINGS | {
    "data.folds": 2,
    "fit.epochs": 4,
    "fit.lr": 0.003,
    "fit.head_lr": 0.003,
    "fit.allow_large_lr": True,
}


@pytest.mark.slow
def test_over_folds_the_points_say_what_the_source_keeps_too(
    source: Path, make_pictures: Any, tmp_path: Path, cli: Cli
) -> None:
    run, new, again = (tmp_path / name for name in ("run", "new", "again"))
    noisy = make_pictures(tmp_path / "noisy", noise=150)
    regraft.fit(noisy, source=str(source), out=run, settings=FOLDED)
    front = read_result(run)["frontier"]
    points = front["points"]
    assert front["chosen_by"] == "cross-validation" and len(points) == 11
    assert points[0]["source"]["ratio"] == 1  # the start's backbone is the source's
    best = min(points, key=lambda p: (-p["figures"]["accuracy"], p["figures"]["loss"], p["alpha"]))
    assert best["alpha"] == front["alpha"]  # without a floor the source chooses nothing

    floor = round(max(p["source"]["low"] for p in points[1:]) - 0.001, 3)
    assert best["source"]["low"] < floor
    code, _, err = cli("frontier", run, "--retain", floor, "--out", new)
    assert code == 0, err
    chosen = points[round(10 * read_result(new)["frontier"]["alpha"])]
    assert chosen["source"]["low"] >= floor
    assert cli("fit", new / "plan.toml", "--out", again, "--quiet")[0] == 0
    one, other = ((r / "model" / "model.safetensors").read_bytes() for r in (new, again))
    assert one == other


def test_over_folds_a_point_is_written_without_source_data_too(
    source: Path, pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    none = {"source_data.path": "none"}
    regraft.fit(pictures, source=str(source), out=run, settings=FOLDED | none)
    assert all(p["source"] is None for p in read_result(run)["frontier"]["points"])
    code, _, err = cli("frontier", run, "--out", new)
    assert code == 0, err
    one, other = ((r / "model" / "model.safetensors").read_bytes() for r in (run, new))
    assert one == other  # the same point of the same line
    assert read_result(new)["probe"] == read_result(run)["probe"]  # with the rows that it was fitted on


def test_over_folds_a_run_at_its_start_has_no_other_point(
    source: Path, pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    regraft.fit(pictures, source=str(source), out=run, settings=FOLDED | {"fit.alpha": 0.0})
    code, _, err = cli("frontier", run, "--out", new)
    assert code == 2 and "nothing was fitted on all of train" in err
    assert not new.exists() and not (run / "frontier").exists()


def test_a_run_without_a_frontier_says_so(source: Path, pictures: Path, cli: Cli) -> None:
    run = source.parent / "fixed"
    regraft.fit(pictures, source=str(source), out=run, settings=SETTINGS | {"fit.alpha": 1.0})
    code, _, err = cli("frontier", run)
    assert code == 2 and "has no frontier" in err and not (run / "frontier").exists()


def test_the_source_is_watched_after_every_epoch_when_asked(source: Path, pictures: Path, tmp_path: Path) -> None:
    more = SETTINGS | {"run.seeds": 1, "fit.epochs": 2, "source_data.each_epoch": True}
    regraft.fit(pictures, source=str(source), out=tmp_path / "run", settings=more)
    lines = [json.loads(x) for x in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [set(x["source"]) for x in lines] == [{"accuracy", "kept"}] * 3
    assert lines[0]["source"]["kept"] == 1  # nothing has moved yet
    r = read_result(tmp_path / "run")
    if r["frontier"] is not None:  # its end is the best epoch, on the same select rows
        end = r["frontier"]["points"][-1]["source"]
        best = lines[r["fit"]["best_epoch"]]["source"]
        assert best == {"accuracy": end["after"], "kept": end["ratio"]}
    plain = SETTINGS | {"run.seeds": 1, "fit.epochs": 2}
    regraft.fit(pictures, source=str(source), out=tmp_path / "plain", settings=plain)
    seen = [json.loads(x) for x in (tmp_path / "plain" / "history.jsonl").read_text().splitlines()]
    assert all(x["source"] == {} for x in seen)
    assert [x["terms"] for x in seen] == [x["terms"] for x in lines]  # watching changes nothing
    with pytest.raises(PlanError, match="each_epoch needs labelled source data"):
        regraft.fit(
            pictures,
            source=str(source),
            out=tmp_path / "no",
            settings=plain | {"source_data.path": "none", "source_data.each_epoch": True},
        )


def test_a_frontier_of_another_seed_or_source_is_refused(target: Path, tmp_path: Path) -> None:
    from regraft.commands.frontier import rechoose, write_chosen

    run = tmp_path / "run"
    shutil.copytree(target, run)
    found = rechoose(run, None)
    record = read_result(run)
    assert record["frontier"]["seed"] == 0
    changed = {**record, "source": {**record["source"], "digest": "0" * 64}}
    (run / "result.json").write_text(json.dumps(changed))
    with pytest.raises(SourceError, match=r"has changed since .* was made: fit it again"):
        write_chosen(run, found, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (run / "result.json").write_text(json.dumps({**record, "frontier": {**record["frontier"], "seed": 1}}))
    with pytest.raises(UsageError, match=r"saved the model of seed 0.*is of seed 1"):
        rechoose(run, None)


def test_what_is_computed_once_is_shared_by_the_seeds(source: Path, pictures: Path) -> None:
    from dataclasses import replace

    from regraft.pipeline.prepare import prepare
    from regraft.plan.read import read_plan

    settings = {"source.ref": str(source), "data.path": str(pictures), "run.threads": 1}
    data = prepare(read_plan(None, settings)).source_data
    assert data is not None
    calls: list[int] = []
    for seed in (0, 1):
        value = replace(data, seed=seed).once("key", lambda: calls.append(1) or len(calls))
        assert value == 1
    assert calls == [1]


def test_rows_that_never_train_come_in_batches_of_32_and_their_pictures_decoded(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.data import image_store
    from regraft.data.ordering import evaluation_batch
    from regraft.pipeline.prepare import prepare
    from regraft.pipeline.train import source_before
    from regraft.plan.read import read_plan

    assert [evaluation_batch(n) for n in (1, 2, 4, 5, 32, 64)] == [8, 16, 32, 32, 32, 64]
    given = {"source.ref": str(source), "data.path": str(pictures), "fit.batch_size": 4}
    job = prepare(read_plan(None, SETTINGS | given))
    assert job.source_data is not None
    sizes = [job.data.batches(split).order.batch_size for split in ("train", "val", "test")]
    assert sizes == [4, 32, 32]
    assert [job.source_data.batches(part).order.batch_size for part in ("fit", "select")] == [4, 32]

    plain = job.source_data.scored(job.source.backbone, "select")
    monkeypatch.setattr(image_store, "no_gain", lambda *given: "")  # so few small pictures would not pay
    before = source_before(job)
    assert before is not None and job.source_data.images[("source data (select)", False)] is not None
    assert np.array_equal(before.scores, plain.scores) and before.ids == plain.ids
    monkeypatch.setattr(type(job.source_data.preprocessor), "decoded", None)  # no picture is decoded again
    assert np.array_equal(job.source_data.scored(job.source.backbone, "select").scores, plain.scores)
