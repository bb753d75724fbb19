"""The command line from data to predictions, on tiny sources."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import read_result, tiny_source

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
COLOUR = {"amber": "230 160 30", "navy": "20 30 120", "olive": "90 120 20"}


def quick(epochs: int = 1) -> list[object]:
    return ["--epochs", epochs, "--batch-size", 16, "--set", "run.threads=1", "-q"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def bytes_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def refused(found: tuple[int, str, str], code: int, *words: str) -> None:
    """An exit code and a sentence; no traceback."""
    assert found[0] == code, found
    assert "Traceback" not in found[2]
    assert found[2].strip()
    for word in words:
        assert word in found[2], found[2]


@pytest.fixture(scope="module")
def photo_run(pictures, weights, tmp_path_factory, preloading) -> Path:
    """One fit that several tests look at."""
    out: Path = tmp_path_factory.mktemp("runs") / "colours"
    command = [sys.executable, "-m", "regraft", "fit", pictures, *tiny_source(weights), *quick(2), "--out", out]
    state = {f"REGRAFT_{x.upper()}": str(out.parent / x) for x in ("state", "cache")}
    with preloading.redirected():
        done = subprocess.run([str(c) for c in command], env=ENV | state, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TARGET" in done.stdout
    assert "TRANSFER not measured" in done.stdout
    assert "test opened once" in done.stdout
    return out


# ---------------------------------------------------------------- what works


def test_a_run_folder_is_complete_and_holds_no_pickle(photo_run):
    names = {str(p.relative_to(photo_run)) for p in photo_run.rglob("*") if p.is_file()}
    assert names == {
        "plan.toml",
        "check.json",
        "environment.json",
        "manifest.jsonl",
        "loading.json",
        "history.jsonl",
        "result.json",
        "predictions.csv",
        "log.txt",
        "model/model.safetensors",
        "model/config.json",
        "model/preprocess.json",
        "model/labels.json",
        "gallery/gallery.json",
        "gallery/suspects.json",
    }
    assert "auto" not in [
        line.split("=")[1].split("#")[0].strip(' "')
        for line in (photo_run / "plan.toml").read_text().splitlines()
        if "=" in line and line.split(" =")[0] not in ("format", "pooling")
    ]


def test_unreadable_pictures_are_counted_and_can_be_skipped(photo_run, pictures, cli, tmp_path):
    good = pictures / "test" / "navy" / "000.png"
    for name in ("bad.png", "worse.png"):
        (tmp_path / name).write_bytes(b"no picture")
    given = (tmp_path / "bad.png", good, tmp_path / "worse.png")
    refused(cli("predict", photo_run, *given), 3, "2 of 3 pictures cannot be read")
    code, out, err = cli("predict", photo_run, *given, "--on-bad", "skip")
    assert code == 0 and [line.partition(",")[0] for line in out.splitlines()[1:]] == [str(good)]
    assert [line.split()[3] for line in err.splitlines() if line.startswith("no prediction for")] == [
        str(tmp_path / "bad.png"),
        str(tmp_path / "worse.png"),
    ]


def test_predict_and_evaluate_agree_with_the_run(photo_run, pictures, cli, tmp_path):
    rows = rows_of(photo_run / "predictions.csv")
    assert len(rows) == 24
    code, _, err = cli("predict", photo_run, pictures / "test", "--out", tmp_path / "p.csv")
    assert code == 0, err
    new = {Path(r["input"]).parts[-2:]: r for r in rows_of(tmp_path / "p.csv")}
    for row in rows:
        same = new[Path(row["where"]).parts[-2:]]
        assert same["predicted"] == row["predicted"]
        for name in COLOUR:
            assert float(same[name]) == pytest.approx(float(row[f"p({name})"]), abs=1e-5)
    code, out, err = cli("evaluate", photo_run, pictures, "--json")
    assert code == 0, err
    found, was = json.loads(out), read_result(photo_run)["test"]
    assert found["n"] == 24
    assert found["rows"] == "test rows"
    right = sum(r["label"] == r["predicted"] for r in rows) / 24
    assert found["accuracy"]["value"] == was["accuracy"]["value"] == pytest.approx(right)
    assert found["log_loss"]["value"] == pytest.approx(was["log_loss"]["value"], abs=1e-6)
    assert found["own"] == {"test": 24}


def test_evaluation_leaves_out_the_rows_of_a_runs_own_train(photo_run, pictures, cli, tmp_path):
    fitted = tmp_path / "fitted"
    for split in ("train", "val"):
        if (pictures / split).is_dir():
            shutil.copytree(pictures / split, fitted, dirs_exist_ok=True)
    refused(cli("evaluate", photo_run, fitted), 3, "are the run's own (train", "not fitted on")
    rows = sum(1 for path in fitted.rglob("*.png"))
    for path in sorted((pictures / "test").rglob("*.png")):  # under new names, so that none is overwritten
        shutil.copy(path, fitted / path.parent.name / f"new {path.name}")
    code, out, err = cli("evaluate", photo_run, fitted, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["n"] == 24 and sum(n for split, n in found["own"].items() if split != "test") == rows
    assert found["accuracy"]["value"] == read_result(photo_run)["test"]["accuracy"]["value"]
    said = cli("evaluate", photo_run, fitted)[1]
    twice = next(path for path in fitted.rglob("*.png") if not path.name.startswith("new"))
    shutil.copy(twice, twice.with_name("copy.png"))  # a second copy of a training row is no new row
    code, out, _ = cli("evaluate", photo_run, fitted, "--json")
    assert json.loads(out)["n"] == 24
    assert f"{rows} more rows are the run's own" in said and "24 of these rows are the run's own test rows" in said


def test_a_run_is_the_source_of_the_next(photo_run, pictures, cli, tmp_path):
    out = tmp_path / "next"
    code, _, err = cli("fit", pictures, "--source", photo_run, *quick(), "--out", out)
    assert code == 0, err
    loading = json.loads((out / "loading.json").read_text())
    assert not [t for t in loading if t["state"] == "fresh" and not t["name"].startswith("head.")]
    assert {t["state"] for t in loading if not t["name"].startswith("head.")} == {"kept"}
    again = cli("predict", out, pictures / "test" / "navy" / "000.png")
    assert again[0] == 0, again
    assert cli("fit", pictures, "--source", out, *quick(), "--out", tmp_path / "third")[0] == 0


def test_a_saved_plan_gives_the_same_bytes(photo_run, cli, tmp_path):
    code, _, err = cli("fit", photo_run / "plan.toml", "--out", tmp_path / "again", "-q")
    assert code == 0, err
    assert bytes_of(tmp_path / "again") == bytes_of(photo_run)
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (photo_run / "predictions.csv").read_bytes()


def test_workers_change_no_bit(photo_run, cli, tmp_path):
    code, _, err = cli("fit", photo_run / "plan.toml", "--out", tmp_path / "w", "-q", "--workers", 2)
    assert code == 0, err
    assert bytes_of(tmp_path / "w") == bytes_of(photo_run)


def test_the_best_epoch_is_no_worse_than_the_probe_on_val(photo_run):
    r = read_result(photo_run)
    assert r["fit"]["best"]["accuracy"] >= r["fit"]["start"]["accuracy"]
    history = [json.loads(line) for line in (photo_run / "history.jsonl").read_text().splitlines()]
    assert [h["epoch"] for h in history] == [0, 1, 2]


@pytest.mark.fault(45)
def test_the_ledger_counts_openings_of_the_same_test(pictures, weights, cli, tmp_path):
    counts = []
    for name in ("one", "two"):
        assert cli("fit", pictures, *tiny_source(weights), *quick(), "--out", tmp_path / name)[0] == 0
        counts.append(read_result(tmp_path / name)["test_opened"])
    assert counts == [1, 2]


def test_texts(bert, cli, tmp_path):
    draw = random.Random(0)
    rows = [
        (f"the {w} {draw.choice(['day', 'film', 'was'])} {i % 7}", label)
        for i in range(40)
        for w, label in (("good", "NA"), ("bad", "007"))
    ]
    data = tmp_path / "texts.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    out = tmp_path / "run"
    code, _, err = cli("fit", data, "--source", f"transformers:{bert}", *quick(), "--out", out)
    assert code == 0, err
    assert read_result(out)["classes"] == ["007", "NA"]
    saved = rows_of(out / "predictions.csv")
    code, printed, err = cli("predict", out, data)
    assert code == 0, err
    new = list(csv.DictReader(printed.splitlines()))
    assert len(new) == len(rows)
    by_row = {r["input"]: r for r in new}
    for row in saved:
        assert float(by_row[row["where"]]["NA"]) == pytest.approx(float(row["p(NA)"]), abs=1e-5)
    assert cli("fit", data, "--source", out, *quick(), "--out", tmp_path / "next")[0] == 0
    code, *_ = cli("evaluate", out, data, "--json")
    assert code == 0


def test_texts_into_a_picture_source_say_so(weights, cli, tmp_path):
    data = tmp_path / "t.csv"
    data.write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(30)))
    found = cli("fit", data, *tiny_source(weights), "--out", tmp_path / "r")
    refused(found, 3, "takes images", "holds texts", "bundled:all-minilm-l6-v2")
    assert not (tmp_path / "r").exists()


def table(folder: Path, pictures: Path, columns: list[str], cells: Any) -> Path:
    rows = [",".join(["file", "split", *columns])]
    for split in ("train", "test"):
        for i, path in enumerate(sorted((pictures / split).rglob("*.png"))):
            name = path.relative_to(pictures)
            rows.append(",".join([str(name), split, *cells(path.parent.name, i)]))
    file = folder / "labels.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def test_regression_on_a_table_of_pictures(pictures, weights, cli, tmp_path):
    size = {"amber": 10.0, "navy": 200.0, "olive": 90.0}
    data = table(tmp_path, pictures, ["size"], lambda c, i: [str(size[c] + i % 3)])
    args = ["--task", "regression", "--image-root", pictures, "--image", "file", "--label", "size"]
    out = tmp_path / "run"
    code, printed, err = cli("fit", data, *tiny_source(weights), *args, *quick(), "--out", out)
    assert code == 0, err
    assert "mae" in printed
    assert set(read_result(out)["controls"]) == {"mean", "linear probe"}
    saved = rows_of(out / "predictions.csv")
    mae = sum(abs(float(r["label"]) - float(r["predicted size"])) for r in saved) / len(saved)
    assert read_result(out)["test"]["mae"]["value"] == pytest.approx(mae, rel=1e-5)
    code, printed, err = cli("evaluate", out, data, "--image-root", pictures, "--json")
    assert code == 0, err
    assert json.loads(printed)["mae"]["value"] == pytest.approx(mae, rel=1e-4)
    bad = table(tmp_path, pictures, ["size"], lambda c, i: ["many" if i == 5 else str(i)])
    found = cli("fit", bad, *tiny_source(weights), *args, "--out", tmp_path / "bad")
    refused(found, 3, '"many" is not a number')


def test_several_labels_a_row(pictures, weights, cli, tmp_path):
    tags = {"amber": "warm;light", "navy": "", "olive": "warm"}
    data = table(tmp_path, pictures, ["tags"], lambda c, i: [tags[c]])
    args = ["--task", "multilabel", "--image-root", pictures, "--image", "file", "--label", "tags"]
    out = tmp_path / "run"
    code, printed, err = cli("fit", data, *tiny_source(weights), *args, *quick(), "--out", out)
    assert code == 0, err
    assert "map" in printed
    assert read_result(out)["classes"] == ["light", "warm"]
    code, printed, err = cli("predict", out, pictures / "test" / "amber", "--json")
    assert code == 0, err
    first = json.loads(printed.splitlines()[0])
    given = ";".join(n for n in ("light", "warm") if first["scores"][n] >= 0.5)
    assert first["label"] == given
    assert first["probability"] is None


def test_three_pictures_a_class_use_folds_three_seeds_a_verdict(make_pictures, weights, cli, tmp_path):
    data = make_pictures(tmp_path / "few", train=3, test=6)
    args = [
        *tiny_source(weights),
        *quick(),
        "--seeds",
        3,
        "--controls",
        "scratch",
        "--set",
        "evaluate.scratch_rates=[1.0]",
        "--set",
        "evaluate.scratch_budget=2",
    ]
    code, printed, err = cli("fit", data, *args, "--out", tmp_path / "run")
    assert code == 0, err
    r = read_result(tmp_path / "run")
    assert r["rows"] == {"train": 9, "val": 0, "test": 18}
    assert set(r["cross_validation"]) == {"folds", "fit", "linear probe", "gain"}
    assert r["cross_validation"]["folds"] == 3
    assert r["cross_validation"]["fit"]["accuracy"]["n"] == 9
    assert r["probe"]["chosen_by"] == "3-fold cross-validation"
    assert [s["seed"] for s in r["seeds"]] == [0, 1, 2]
    assert r["verdict"]["seeds"] == 3
    assert r["verdict"]["words"] in ("transfer helps", "transfer hurts", "not decided")
    gains = [s["test"]["accuracy"] - s["scratch"]["accuracy"] for s in r["seeds"]]
    assert r["verdict"]["gain"]["value"] == pytest.approx(sum(gains) / 3)
    assert r["verdict"]["words"] in printed
    assert r["gains_over_seeds"] == ["scratch", "linear probe"]
    over_probe = sum(s["test"]["accuracy"] for s in r["seeds"]) / 3 - r["controls"]["linear probe"]["accuracy"]["value"]
    assert r["gain"]["linear probe"]["value"] == pytest.approx(over_probe)
    assert r["scratch"]["chosen"] == "rate 0.001, chosen by cross-validation"
    assert r["scratch"]["chosen"] in printed and len(r["scratch"]["best_epochs"]) == 3
    if not r["fit"]["fitted"]:  # the probe stands, and is what was saved
        assert r["fit"]["epochs"] == 0
        assert r["gain"]["linear probe"]["value"] == 0


def test_the_frontier_joins_the_probe_and_the_fit(make_pictures, weights, cli, tmp_path):
    data = make_pictures(tmp_path / "noisy", noise=150)
    runs = {}
    for name in ("chosen", "0.5", "0", "1"):
        settings = [
            *tiny_source(weights),
            *quick(),
            "--set",
            "fit.lr=5e-4",
            "--set",
            "fit.head_lr=5e-4",
            "--set",
            "fit.epochs=4",
            "--set",
            f"fit.alpha={name}",
        ]
        code, _, err = cli("fit", data, *settings, "--out", tmp_path / name)
        assert code == 0, err
        runs[name] = read_result(tmp_path / name)
    front = runs["chosen"]["frontier"]
    assert [p["alpha"] for p in front["points"]] == [i / 10 for i in range(11)]
    assert runs["0.5"]["frontier"] is None and runs["1"]["frontier"] is None

    def figures(run):  # on val, as its own model has them
        return [run["val"][m]["value"] for m in ("accuracy", "log_loss")]

    for alpha, at in (("0", 0), ("0.5", 5), ("1", 10)):
        point = front["points"][at]["figures"]
        assert figures(runs[alpha]) == pytest.approx([point["accuracy"], point["loss"]], abs=1e-5)
    best = max(front["points"], key=lambda p: (p["figures"]["accuracy"], -p["figures"]["loss"]))
    assert front["alpha"] == best["alpha"]
    assert front["test at alpha 1"] == runs["1"]["test"]
    assert runs["0"]["gain"]["linear probe"]["value"] == 0
    gain = runs["chosen"]["test"]["accuracy"]["value"] - runs["1"]["test"]["accuracy"]["value"]
    assert front["gain over alpha 1"]["value"] == pytest.approx(gain)


def test_without_a_probe_to_start_from_there_is_no_frontier(pictures, weights, cli, tmp_path):
    random = [*tiny_source(weights), *quick(), "--set", "fit.start=random"]
    code, _, err = cli("fit", pictures, *random, "--set", "fit.alpha=0.5", "--out", tmp_path / "a")
    assert code != 0 and "has no frontier" in err and not (tmp_path / "a").exists()
    code, _, err = cli("fit", pictures, *random, "--out", tmp_path / "b")
    assert code == 0, err
    assert read_result(tmp_path / "b")["frontier"] is None


def test_a_random_source_keeps_nothing_and_says_so(pictures, cli, tmp_path):
    args = ["--source", "random:timm/test_resnet", "--set", "source.image_size=32", *quick()]
    code, printed, err = cli("fit", pictures, *args, "--out", tmp_path / "run")
    assert code == 0, err
    assert "none kept" in printed
    assert set(read_result(tmp_path / "run")["controls"]) == {"majority"}


@pytest.mark.fault(30)
def test_frozen_blocks_are_bitwise_the_sources(pictures, weights, cli, tmp_path):
    out = tmp_path / "run"
    args = [*tiny_source(weights), *quick(), "--freezing", "head_only", "--head-lr", "0.001"]
    assert cli("fit", pictures, *args, "--out", out)[0] == 0
    source, fitted = load_file(weights), load_file(out / "model" / "model.safetensors")
    kept = [n for n in fitted if n.startswith("backbone.")]
    assert kept
    assert all(torch.equal(fitted[n], source[n.removeprefix("backbone.")]) for n in kept)


def test_init_writes_a_plan_that_plan_accepts_with_every_block(pictures, weights, cli, tmp_path):
    file = tmp_path / "plan.toml"
    assert cli("init", "timm:test_resnet", pictures, "--out", file)[0] == 0
    refused(cli("init", "timm:test_resnet", pictures, "--out", file), 2, "not overwritten")
    code, printed, err = cli("plan", file, "--weights", weights, "--set", "source.image_size=32")
    assert code == 0, err
    from regraft.model.types import SourceOptions
    from regraft.sources import load_source

    source = load_source("timm:test_resnet", SourceOptions(weights=weights, image_size=32))
    lines = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert [n for n in lines if n in {b.name for b in source.blocks} | {"head"}] == [
        *(b.name for b in source.blocks),
        "head",
    ]
    (line,) = [line for line in printed.splitlines() if line.startswith("power ")]
    assert "1 seed and" in line and "over the linear probe four times in five" in line
    auto = ("--weights", weights, "--set", "source.image_size=32", "--controls", "scratch", "--seeds", "auto")
    code, printed, err = cli("plan", file, *auto)
    assert code == 0 and printed.count(" (3 seeds) to ") == printed.count(" (10 seeds)") == 2, err
    assert "up to 10 seeds and" in printed and "over scratch four times in five, looked up to 8 times" in printed
    refused(cli("plan", file, "--seeds", "many"), 2, "--seeds", "many")


@pytest.mark.parametrize("what", ["sources", "formats", "tasks", "freezing", "regularizers", "metrics", "all"])
def test_list_names_every_file(what, cli):
    from regraft import plugins

    code, printed, err = cli("list", what)
    assert code == 0, err
    for folder in plugins.FOLDERS if what == "all" else [what]:
        assert all(name in printed for name in plugins.names(folder))
    assert json.loads(cli("list", what, "--json")[1])


def test_list_shows_runs_and_refuses_what_is_neither(photo_run, cli, tmp_path):
    code, printed, _ = cli("list", photo_run.parent)
    assert code == 0
    assert "colours" in printed
    assert "finished" in printed
    refused(cli("list", "metric"), 2, 'did you mean "metrics"')


# ---------------------------------------------------------------- what is refused


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_existing_run_folder_is_never_touched(photo_run, pictures, weights, cli):
    before = tree(photo_run)
    found = cli("fit", pictures, *tiny_source(weights), *quick(), "--out", photo_run)
    refused(found, 2, "never overwritten", "--out")
    assert tree(photo_run) == before


def test_data_that_cannot_be_used(make_pictures, weights, cli, tmp_path):
    out = tmp_path / "run"

    def fit(path: Path, *more: object) -> tuple[int, str, str]:
        return cli("fit", path, *tiny_source(weights), *quick(), *more, "--out", out)

    refused(fit(tmp_path / "nowhere"), 3, "does not exist")
    one = make_pictures(tmp_path / "one")
    for split in ("train", "test"):
        for name in ("navy", "olive"):
            for p in (one / split / name).iterdir():
                p.unlink()
            (one / split / name).rmdir()
    refused(fit(one), 3, "class")
    only = make_pictures(tmp_path / "only")
    (only / "test" / "tulip").mkdir()
    (only / "test" / "navy" / "000.png").rename(only / "test" / "tulip" / "000.png")
    refused(fit(only), 3, "tulip")
    bad = make_pictures(tmp_path / "bad")
    (bad / "train" / "navy" / "007.png").write_bytes(b"no picture")
    refused(fit(bad), 3, "navy/007.png", "--on-bad skip")
    assert not out.exists()
    code, _, err = fit(bad, "--on-bad", "skip")
    assert code == 0, err
    assert sum(read_result(out)["rows"].values()) == 83
    assert "navy/007.png" in (out / "log.txt").read_text()


@pytest.mark.fault(36)
def test_an_empty_class_folder_is_no_class_and_is_said(make_pictures, weights, cli, tmp_path):
    empty = make_pictures(tmp_path / "empty")
    (empty / "train" / "void").mkdir()
    out = tmp_path / "run"
    code, _, err = cli("fit", empty, *tiny_source(weights), *quick(), "--out", out)
    assert code == 0, err
    log = (out / "log.txt").read_text()
    assert "1 class folder without a picture left out: train/void" in log
    labels = json.loads((out / "model/labels.json").read_text())
    assert "navy" in str(labels) and "void" not in str(labels)


def test_a_column_that_does_not_exist(pictures, weights, cli, tmp_path):
    data = table(tmp_path, pictures, ["kind"], lambda c, i: [c])
    found = cli(
        "fit", data, *tiny_source(weights), "--image-root", pictures, "--label", "knid", "--out", tmp_path / "run"
    )
    refused(found, 3, 'did you mean "kind"')


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.fault(27)
def test_weights_that_cannot_be_used(pictures, weights, cli, tmp_path):
    def fit(file: Path) -> tuple[int, str, str]:
        return cli("fit", pictures, *tiny_source(file), *quick(), "--out", tmp_path / "run")

    short = tmp_path / "short.safetensors"
    short.write_bytes(weights.read_bytes()[:-100])
    refused(fit(short), 4, "damaged")
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"weight": Evil(str(tmp_path / "trace"))}))
    refused(fit(evil), 4, "nothing executed")
    assert not (tmp_path / "trace").exists()
    other = tmp_path / "other.safetensors"
    save_file({"encoder.weight": torch.ones(3)}, other)
    refused(fit(other), 4, "no tensor matches")
    part = tmp_path / "part.safetensors"
    state = load_file(weights)
    name = next(n for n in state if n.endswith("conv1.weight") and "layer" in n)
    save_file({k: v for k, v in state.items() if k != name}, part)
    refused(fit(part), 4, name, "allow_fresh")
    broken = tmp_path / "nan.safetensors"
    save_file(state | {name: state[name] * float("nan")}, broken)
    refused(fit(broken), 4, name, "NaN")
    refused(fit(tmp_path / "none.safetensors"), 4, "no such weights file")
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(28)
def test_rates_that_destroy_are_refused_or_diverge(pictures, weights, cli, tmp_path):
    args = ["fit", pictures, *tiny_source(weights), *quick()]
    refused(cli(*args, "--lr", 1e6, "--out", tmp_path / "a"), 2, "scratch rate", "allow_large_lr")
    wild = [
        *args,
        "--lr",
        1e30,
        "--head-lr",
        1e30,
        "--optimizer",
        "SGD",
        "--set",
        "fit.allow_large_lr=true",
        "--set",
        "fit.batch_norm=frozen",
    ]
    refused(cli(*wild, "--out", tmp_path / "b"), 5, "not finite", "step", "lower fit.lr")
    said = read_result(tmp_path / "b")
    assert said["status"] == "failed"
    assert "not finite" in said["error"]
    assert not (tmp_path / "b" / "lock").exists()
    refused(cli("predict", tmp_path / "b", pictures), 2, "no model")
    refused(cli("fit", pictures, "--source", tmp_path / "b", "--out", tmp_path / "c"), 4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "fit.epocs=3"], 'did you mean "epochs"'),
        (["--set", "fit.epochs"], "section.key=value"),
        (["--optimizer", "Adan"], "did you mean"),
        (["--freezing", "gradul"], 'did you mean "gradual"'),
        (["--set", "freezing.blocks=2"], "freezing.blocks: unknown key"),
        (["--set", "task.primary=accurracy"], 'did you mean "accuracy"'),
        (["--set", 'fit.block_lr={"layer9*" = 1e-5}'], "matches no block"),
        (["--set", "fit.optimizer_options={momentum = 0.9}"], "refuses them"),
        (["--set", "regularizers.l1.strenght=1"], 'did you mean "strength"'),
        (["--device", "cuda:77"], "cannot be used"),
    ],
)
def test_a_plan_that_is_wrong_exits_with_2_and_leaves_nothing(pictures, weights, cli, tmp_path, more, words):
    out = tmp_path / "run"
    refused(cli("fit", pictures, *tiny_source(weights), *quick(), *more, "--out", out), 2, words)
    assert not out.exists()


def test_no_source_and_no_out_are_said(pictures, weights, cli):
    refused(cli("fit", pictures, "--out", "x"), 2, "--source")
    refused(cli("fit", pictures, *tiny_source(weights)), 2, "--out")
    refused(cli("fit", "no-such-plan.toml", "--out", "x"), 2, "cannot be read")
    assert cli("fitt")[0] == 2


# ---------------------------------------------------------------- the process itself


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.run(command, env=ENV, capture_output=True, text=True)


HEAVY = ("torch", "torchvision", "transformers", "timm", "sklearn", "scipy", "matplotlib")


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["--version"], ["list", "all"]])
def test_help_and_list_load_nothing_heavy(args):
    code = (
        "import sys\nfrom regraft.cli.app import main\n"
        f"sys.argv = ['regraft', *{args!r}]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"sys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or None)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.fault(90)
def test_a_closed_pipe_gives_no_traceback():
    command = f"{sys.executable} -m regraft list all | true"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", command + "; echo ${PIPESTATUS[0]}"], env=ENV, capture_output=True, text=True
        )
        assert done.stderr == ""
        assert done.stdout.strip() in ("0", "1", "141")
