"""A learning curve on folds of train: nested rows, every arm, a band, and an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regraft.commands.curve import CurvePoint, answer, draw, in_words, more_labels, point, rows_of
from regraft.evidence.extrapolation import extrapolate
from regraft.metrics import accuracy, r2, rmse
from regraft.pipeline.prepare import prepare
from regraft.plan.read import check

from .conftest import Cli


@pytest.fixture
def made(cli: Cli, pictures: Path, weights: Path, tmp_path: Path) -> tuple[dict[str, Any], str]:
    code, out, err = cli(
        "curve",
        pictures,
        "--source",
        "timm:test_resnet",
        "--weights",
        weights,
        "--out",
        tmp_path / "curve",
        "--labels",
        4,
        "--labels",
        2,
        "--controls",
        "scratch",
        "--epochs",
        1,
        "--set",
        "source.image_size=32",
        "--set",
        "run.threads=1",
        "--set",
        "fit.batch_size=8",
        "--set",
        "evaluate.scratch_budget=1.0",
        "--set",
        "evaluate.scratch_rates=[1.0, 1e30]",
    )
    assert code == 0, err
    assert "scratch 1e+27 is out at 4 labels: the " in " ".join(out.split())
    record: dict[str, Any] = json.loads((tmp_path / "curve" / "curve.json").read_text())
    assert (tmp_path / "curve" / "curve.png").stat().st_size > 1000
    return record, out


@pytest.mark.slow
def test_every_arm_has_a_point_at_every_number_of_labels(made: tuple[dict[str, Any], str]) -> None:
    record, out = made
    points = record["points"]
    assert [(q["labels"], q["arm"]) for q in points] == [
        (n, a) for n in (2, 4) for a in ("linear probe", "fit", "scratch")
    ]
    for q in points:
        assert len(q["folds"]) == record["folds"] == 5 and q["rows"] == 3 * q["labels"]
        if np.std(q["folds"]) > 0:
            low, high = stats.t.interval(0.95, 4, np.mean(q["folds"]), stats.sem(q["folds"]))
            assert (q["low"], q["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    assert any(np.std(q["folds"]) > 0 for q in points)  # else no band was looked at
    assert "4 labels   scratch" in out and record["answer"] in out
    assert record["more_labels"] == [] and "With 4 numbers of labels or more" in out
    assert record["unit"] == "labels a class" and record["plan"]["fit"]["epochs"] == 1


def prepared(pictures: Path, weights: Path) -> Any:
    return prepare(
        check(
            {
                "source": {"ref": "timm:test_resnet", "weights": str(weights), "image_size": 32},
                "data": {"path": str(pictures)},
                "run": {"threads": 1},
            }
        )
    )


def test_rows_are_nested_and_as_many_of_each_class(pictures: Path, weights: Path) -> None:
    p = prepared(pictures, weights).data
    fit, judged = p.folds()[0]
    few, more = rows_of(p, fit, 2, 0), rows_of(p, fit, 5, 0)
    assert set(few) < set(more) <= set(fit) and not set(more) & set(judged)
    assert sorted(p.strata[i] for i in more) == sorted(p.task.classes * 5)


def test_too_few_rows_are_refused_by_class_at_the_start(
    cli: Cli, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = (
        "curve",
        pictures,
        "--source",
        "timm:test_resnet",
        "--weights",
        weights,
        "--set",
        "source.image_size=32",
        "--out",
        tmp_path / "c",
    )
    code, _, err = cli(*arguments, "--labels", 500)
    assert code != 0 and '--labels 500: a fold of train has 12 rows of "amber"' in err
    code, _, err = cli(*arguments, "--labels", 0)
    assert code == 2 and "say at how many labels" in err
    assert not (tmp_path / "c").exists()


def test_the_answer_is_about_the_last_step_beyond_the_scatter() -> None:
    def fits(*folds: float) -> list[CurvePoint]:
        return [
            CurvePoint("fit", n, n, v, v, v, (v, v + 0.01 * i, v - 0.01 * i))
            for i, (n, v) in enumerate(zip((3, 10), folds, strict=True))
        ]

    assert answer(fits(0.6, 0.8), True).startswith("more labels are likely to help: from 3 to 10")
    assert answer(fits(0.8, 0.6), False).startswith("more labels are likely to help")
    assert answer(fits(0.6, 0.6), True).startswith("no sign that more labels help")
    assert "--labels" in answer(fits(0.6, 0.8)[:1], True)


ERRORS = np.array([[0.52, 0.48, 0.50], [0.41, 0.39, 0.41], [0.33, 0.31, 0.34], [0.27, 0.25, 0.28]])


def points_of(values: Any) -> list[CurvePoint]:
    return [point("fit", 2**i, 2**i, row.tolist()) for i, row in enumerate(values, 1)]


def test_more_labels_are_a_range_of_the_metric() -> None:
    twice, four = extrapolate([2, 4, 8, 16], ERRORS)
    higher = more_labels(points_of(1 - ERRORS), accuracy)
    assert [q["labels"] for q in higher] == [32, 64]
    assert [q["low"] for q in higher] == pytest.approx([1 - twice.high, 1 - four.high])
    assert [q["high"] for q in higher] == pytest.approx([1 - twice.low, 1 - four.low])
    lower = more_labels(points_of(ERRORS), rmse)
    assert [q["low"] for q in lower] == pytest.approx([twice.low, four.low])
    assert [q["high"] for q in lower] == pytest.approx([twice.high, four.high])
    assert more_labels(points_of(1 - ERRORS)[:3], accuracy) == []
    assert more_labels(points_of(1 - ERRORS), r2) == []  # it has no least value to count errors from


def test_more_labels_are_told_and_drawn(tmp_path: Path) -> None:
    points, more = points_of(1 - ERRORS), more_labels(points_of(1 - ERRORS), accuracy)
    record = {"primary": "accuracy", "folds": 3, "points": [vars(q) for q in points], "more_labels": more}
    said = in_words(record | {"answer": "so it is"})
    assert f"    64 labels   fit, not seen   {more[1]['low']:.3f} to {more[1]['high']:.3f}" in said
    assert said.endswith("unknown floor.\nso it is")
    draw(record["points"], more, "accuracy", "labels a class", tmp_path / "with.png")
    draw(record["points"], [], "accuracy", "labels a class", tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_a_band_stays_within_the_bounds_of_its_metric() -> None:
    wide = point("fit", 2, 2, [0.2, 1.0], bounded=True)
    assert (wide.low, wide.high) == (0.0, 1.0)
    free = point("fit", 2, 2, [0.2, 1.0])
    assert free.low < 0 and free.high > 1
