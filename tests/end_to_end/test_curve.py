"""A learning curve on folds of train: nested rows, every arm, a band, and an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regraft.commands.curve import CurvePoint, answer, rows_of
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
            assert (q["low"], q["high"]) == pytest.approx((low, high))
    assert any(np.std(q["folds"]) > 0 for q in points)  # else no band was looked at
    assert "4 labels   scratch" in out and record["answer"] in out
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
