"""Runs side by side, from their folders alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft
from regraft.errors import UsageError


@pytest.fixture(scope="module")
def make(weights: Path) -> Any:
    def run(data: Path, out: Path, **settings: Any) -> Path:
        plan = {
            "source.weights": str(weights),
            "source.image_size": 32,
            "run.threads": 1,
            "fit.epochs": 1,
            "fit.batch_size": 16,
        } | settings
        regraft.fit(data, source="timm:test_resnet", out=out, settings=plan)
        return out

    return run


@pytest.fixture(scope="module")
def runs(make: Any, make_pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run, and a copy of it that answers otherwise on a third of the rows."""
    here = tmp_path_factory.mktemp("compare")
    first = make(make_pictures(here / "noisy", test=20, noise=170), here / "first")
    second = here / "second"
    shutil.copytree(first, second)
    with (first / "predictions.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    names = [h.removeprefix("p(").removesuffix(")") for h in header[4:]]
    for line in lines[::3]:
        line[4:] = line[5:] + line[4:5]
        line[3] = names[int(np.argmax([float(v) for v in line[4:]]))]
    with (second / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return [first, second]


def right(run: Path) -> np.ndarray:
    with (run / "predictions.csv").open(newline="") as file:
        rows = {r["id"]: float(r["label"] == r["predicted"]) for r in csv.DictReader(file)}
    return np.array([rows[i] for i in sorted(rows)])


def test_the_difference_is_paired_on_the_same_rows(runs: list[Path]) -> None:
    first, second = regraft.compare(runs)
    assert first.gain is None and second.gain is not None
    by_hand = right(runs[1]).mean() - right(runs[0]).mean()
    assert second.gain.value == pytest.approx(by_hand)
    assert by_hand != 0 and second.gain.n == 60
    assert first.test.value == pytest.approx(right(runs[0]).mean())


def test_swapped_runs_mirror_the_interval(runs: list[Path]) -> None:
    there, back = (regraft.compare(r)[1].gain for r in (runs, runs[::-1]))
    assert there is not None and back is not None
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_the_order_of_rows_does_not_matter(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    header, *lines = (other / "predictions.csv").read_text().splitlines()
    (other / "predictions.csv").write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert regraft.compare([runs[0], other])[1].gain == regraft.compare(runs)[1].gain


def test_the_command_prints_a_line_a_run_and_names_the_metric(runs: list[Path], cli: Any) -> None:
    code, printed, err = cli("compare", *runs)
    assert code == 0, err
    assert "accuracy on test, n = 60" in printed and "about these models, not the methods" in printed
    assert all(sum(str(r) in line for line in printed.splitlines()[1:3]) == 1 for r in runs)
    code, printed, err = cli("compare", *runs, "--json")
    gain = regraft.compare(runs)[1].gain
    assert gain is not None and json.loads(printed)[1]["gain"]["value"] == gain.value


def test_intervals_of_several_runs_hold_together(runs: list[Path], tmp_path: Path) -> None:
    from regraft.evidence.comparison import read_judgement
    from regraft.evidence.scoring import gain
    from regraft.metrics import accuracy

    third = tmp_path / "third"
    shutil.copytree(runs[1], third)
    alone = regraft.compare(runs)[1].gain
    lines = regraft.compare([*runs, third])
    a, b = (read_judgement(run).rows for run in runs)
    assert lines[1].gain == lines[2].gain == gain(accuracy, b, a, 0.975)
    assert alone is not None and lines[1].gain is not None
    assert lines[1].gain.low < alone.low and alone.high < lines[1].gain.high


def test_equal_runs_are_hardly_ever_told_apart() -> None:
    """Ten models that are right on 80 % of 200 rows each, by chance: no interval of nine may leave 0 out."""
    from regraft.evidence.scoring import Predictions, gain
    from regraft.metrics import accuracy

    rng, apart, draws = np.random.default_rng(0), {0.95: 0, 1 - 0.05 / 9: 0}, 300
    truth = np.zeros(200, int)
    for _ in range(draws):
        right = rng.random((10, 200)) < 0.8
        rows = [Predictions(tuple(map(str, range(200))), truth, np.stack([r, ~r], 1).astype(float)) for r in right]
        for level in apart:
            found = [gain(accuracy, other, rows[0], level) for other in rows[1:]]
            apart[level] += any(e.low > 0 or e.high < 0 for e in found)
    assert apart[1 - 0.05 / 9] / draws < 0.06 < 0.15 < apart[0.95] / draws


def tables(run: Path, seeds: list[str]) -> list[list[list[str]]]:
    found = []
    for seed in seeds:
        with (run / f"predictions{seed}.csv").open(newline="") as file:
            found.append(list(csv.reader(file)))
    return found


@pytest.fixture(scope="module")
def seeded(make: Any, make_pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of three seeds, and a copy of it whose seeds answer otherwise on a third of the rows each."""
    here = tmp_path_factory.mktemp("seeds")
    data = make_pictures(here / "noisy", test=20, noise=170)
    first, second = make(data, here / "first", **{"run.seeds": 3, "fit.start": "random"}), here / "second"
    shutil.copytree(first, second)
    for k, table in enumerate(tables(first, ["", "-1", "-2"])):
        for line in table[1 + k :: 3]:
            line[4:] = line[5:] + line[4:5]
        rows = [table[0], *(reversed(table[1:]) if k == 1 else table[1:])]  # the order does not matter
        with (second / f"predictions{f'-{k}' if k else ''}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return [first, second]


def test_runs_of_three_seeds_are_compared_as_methods(seeded: list[Path], cli: Any) -> None:
    from regraft.evidence.scoring import Predictions
    from regraft.evidence.verdict import decide
    from regraft.metrics import accuracy

    def predictions(run: Path) -> list[Predictions]:
        found = []
        for header, *lines in tables(run, ["", "-1", "-2"]):
            names = [h.removeprefix("p(").removesuffix(")") for h in header[4:]]
            lines.sort()
            truth = np.array([names.index(line[2]) for line in lines])
            found.append(
                Predictions(tuple(line[0] for line in lines), truth, np.array([line[4:] for line in lines], float))
            )
        return found

    pairs = list(zip(*(predictions(run) for run in reversed(seeded)), strict=True))
    line, wanted = regraft.compare(seeded)[1], decide(accuracy, pairs).gain
    assert line.over_seeds == 3 and line.gain is not None and wanted is not None
    assert (line.gain.value, line.gain.low, line.gain.high) == pytest.approx((wanted.value, wanted.low, wanted.high))
    code, printed, err = cli("compare", *seeded)
    assert code == 0, err
    assert "over 3 seeds" in printed and "about the methods on such data" in printed


def test_without_tables_of_all_seeds_the_saved_models_are_compared(seeded: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(seeded[1], other)
    (other / "predictions-2.csv").unlink()
    assert regraft.compare([seeded[0], other])[1].over_seeds == 0
    shutil.copy(seeded[0] / "predictions.csv", other / "predictions-2.csv")
    lines = (other / "predictions-2.csv").read_text().splitlines()
    (other / "predictions-2.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UsageError, match=r"predictions-2.csv.*its rows are not those of predictions.csv"):
        regraft.compare([seeded[0], other])


@pytest.mark.slow
def test_runs_are_ranked_by_the_rows_that_chose_with_the_settings_that_differ(
    runs: list[Path], make: Any, make_pictures: Any, tmp_path: Path, cli: Any
) -> None:
    data = make_pictures(tmp_path / "noisy", test=20, noise=170)
    val, folds = make(data, tmp_path / "val"), make(data, tmp_path / "folds", **{"data.folds": 3, "fit.epochs": 2})
    code, printed, err = cli("compare", val, folds, "--json")
    assert code == 0, err
    lines = json.loads(printed)
    results = [json.loads((run / "result.json").read_text()) for run in (val, folds)]
    assert (lines[0]["held_out"], lines[0]["held_out_by"]) == (results[0]["val"]["accuracy"]["value"], "val")
    points = {p["alpha"]: p for p in (results[1]["frontier"] or {"points": []})["points"]}
    cross = results[1]["cross_validation"]["fit"]["accuracy"]["value"]
    chosen = points[results[1]["frontier"]["alpha"]]["figures"]["accuracy"] if points else cross
    assert (lines[1]["held_out"], lines[1]["held_out_by"]) == (chosen, "folds")
    assert lines[0]["settings"] == {"fit.epochs": 1} and lines[1]["settings"] == {"data.folds": 3, "fit.epochs": 2}
    code, printed, err = cli("compare", val, folds)
    first = max((0, 1), key=lambda i: lines[i]["held_out"])
    assert str((val, folds)[first]) in printed.splitlines()[1] and "fit.epochs = 2" in printed


def test_other_test_rows_are_refused(runs: list[Path], make: Any, make_pictures: Any, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "fewer", test=7, noise=170)
    other = make(data, tmp_path / "run")
    with pytest.raises(UsageError, match=r"first and .*run .*39 "):
        regraft.compare([runs[0], other])


def test_other_tasks_fewer_than_two_and_no_runs_are_refused(runs: list[Path], cli: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps(result | {"primary": "macro_f1"}))
    with pytest.raises(UsageError, match=r"primary metric .*accuracy and macro_f1"):
        regraft.compare([runs[0], other])
    (other / "result.json").write_text(json.dumps(result | {"status": "failed"}))
    with pytest.raises(UsageError, match="no finished run: its status is failed"):
        regraft.compare([runs[0], other])
    for args, words in (
        ([runs[0]], "two runs or more"),
        ([runs[0], f"{runs[0]}/../{runs[0].name}"], "named twice"),
        ([runs[0], tmp_path], "is this a run folder?"),
    ):
        code, _, err = cli("compare", *args)
        assert code == 2 and words in err and "Traceback" not in err
