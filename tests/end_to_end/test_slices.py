"""Figures by the values of a column, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from builders import read_result
from regraft.pipeline.run import digest_of_plan
from regraft.plan.read import read_run_plan

QUICK = ["--epochs", 1, "--batch-size", 16, "--set", "run.threads=1", "-q"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Texts whose labels depend on a word, but not those of one site."""
    rows = []
    for i in range(240):
        good = i % 2
        label = (good if i % 4 < 2 else 1 - good) if i % 8 // 2 == 3 else good
        word = "good" if good else "bad"
        rows.append(
            [
                f"{word} {i}",
                ["no", "yes"][label],
                "test" if i >= 80 else "train",
                f"s{i % 8 // 2}",
                "" if i % 3 else "eve",
                f"{i}",
            ]
        )
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label", "split", "site", "hour", "number"], *rows])
    return path


def test_slices_are_shown_everywhere_and_change_nothing_else(bert, cli, table, tmp_path):
    source = ["--source", f"transformers:{bert}"]
    without, with_ = tmp_path / "without", tmp_path / "with"
    assert cli("fit", table, *source, *QUICK, "--out", without)[0] == 0
    code, out, err = cli("fit", table, *source, *QUICK, "--slice", "site", "--slice", "hour", "--out", with_)
    assert code == 0, err
    for name in ("model/model.safetensors", "predictions.csv", "manifest.jsonl"):
        assert (without / name).read_bytes() == (with_ / name).read_bytes(), name
    assert read_result(without)["slices"] is None
    assert digest_of_plan(read_run_plan(without)) == digest_of_plan(read_run_plan(with_))  # of checkpoints

    result = read_result(with_)
    found = result["slices"]
    assert [c["column"] for c in found["columns"]] == ["site", "hour"]
    assert found["comparisons"] == 4 + 1  # the two hours are one comparison
    for column in found["columns"]:
        assert sum(v["n"] for v in column["values"]) == result["rows"]["test"] == 160
        assert all(set(v["metrics"]) == set(result["test"]) for v in column["values"])
    with table.open(newline="") as file:
        cells = {f"texts.csv row {i}": row for i, row in enumerate(csv.DictReader(file), 2)}
    with (with_ / "predictions.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    for value in found["columns"][0]["values"]:
        own = [p for p in predicted if cells[p["where"]]["site"] == value["value"]]
        right = sum(p["label"] == p["predicted"] for p in own)
        assert (value["n"], value["metrics"]["accuracy"]["value"]) == (len(own), pytest.approx(right / len(own)))
    worst = found["columns"][0]["values"][0]["value"]
    assert f"SLICES   site: worst {worst}, n = 40" in out
    assert "hour: worst" in out and "5 comparisons at 95 % together" in out

    code, out, err = cli("evaluate", with_, table, "--slice", "site", "--json")
    assert code == 0, err
    again = json.loads(out)["slices"]
    assert again["comparisons"] == 4
    both = [[(v["value"], v["n"], v["metrics"]["accuracy"]) for v in s["columns"][0]["values"]] for s in (again, found)]
    assert both[0] == both[1]
    code, out, err = cli("evaluate", with_, table, "--slice", "hour")
    assert code == 0 and "hour: worst" in out, err
    code, _, err = cli("evaluate", with_, table, "--slice", "hours")
    assert code == 3 and 'did you mean "hour"?' in err


def test_a_column_is_refused_before_anything_is_trained(bert, cli, table, pictures, weights, tmp_path):
    out = tmp_path / "run"
    for column, word in (("sites", 'did you mean "site"?'), ("label", "label column"), ("number", "160 values in 160")):
        code, _, err = cli("fit", table, "--source", f"transformers:{bert}", *QUICK, "--slice", column, "--out", out)
        assert code == 3 and word in err and "Traceback" not in err, err
    code, _, err = cli("fit", pictures, "--source", "timm:test_resnet", "--slice", "site", "--out", out)
    assert code == 3 and "give a table" in err, err
    assert not out.exists()
