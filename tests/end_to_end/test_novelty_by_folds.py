"""Without val, rows unlike train are told by distances of rows of train from folds that lack them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft
from regraft.evidence.ood import fit_distance, read_novelty, threshold_rank
from regraft.model.forward import outputs
from regraft.model.weights import restore, snapshot
from regraft.pipeline import folds as folds_module
from regraft.pipeline.arms import Arm
from regraft.pipeline.folds import CrossValidation
from regraft.pipeline.job import Job
from regraft.pipeline.novelty import distances_by_folds, novelty_of
from regraft.pipeline.prepare import prepare
from regraft.plan.read import read_run_plan
from regraft.training.records import FitResult

SETTINGS = {"run.threads": 1, "fit.epochs": 1, "fit.batch_size": 16, "source.image_size": 32, "data.folds": 3}


def fitted(data: Path, weights: Path, out: Path, **settings: Any) -> Path:
    regraft.fit(
        data, source="timm:test_resnet", out=out, settings=SETTINGS | {"source.weights": str(weights)} | settings
    )
    return out


@pytest.fixture(scope="module")
def frozen(pictures: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run over three folds whose backbone no fit moved."""
    return fitted(pictures, weights, tmp_path_factory.mktemp("frozen") / "run", **{"freezing.name": "head_only"})


def held_out(job: Job, ends: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Distances of all rows of train, each from the rows of the other folds, computed from the definition."""
    found = []
    for (rows, others), end in zip(job.data.folds(), ends, strict=True):
        target = job.initial_target(job.source, 0)
        restore(target, end)
        every = outputs(target.model.get_submodule("backbone"), job.data.batches("train"), job.compute)
        classes = every.targets.numpy()
        near = fit_distance(every.values.numpy()[rows], classes[rows].tolist())
        assert near is not None
        found.append(near.distances(every.values.numpy()[others]))
    return np.sort(np.concatenate(found))


def ends_away_from(start: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return three ends of fits, each with convolutions of its own."""
    generator = torch.Generator().manual_seed(0)

    def away(t: torch.Tensor) -> torch.Tensor:
        return t + 0.1 * torch.randn(t.shape, generator=generator) if t.dim() == 4 else t

    return [{n: away(t) for n, t in start.items()} for _ in range(3)]


def test_a_run_by_folds_warns_at_the_distance_of_rows_that_each_fold_lacks(frozen: Path) -> None:
    job = prepare(read_run_plan(frozen))
    backbone = snapshot(job.initial_target(job.source, 0))  # which no fold moved
    distances = held_out(job, [backbone] * 3)
    novelty = read_novelty(frozen / "model")
    assert novelty is not None and novelty.held_out == novelty.rows == len(distances) == 60
    assert novelty.threshold == pytest.approx(distances[threshold_rank(60) - 1], rel=1e-4)


def test_each_fold_is_judged_by_its_own_weights_at_the_chosen_point(frozen: Path) -> None:
    job = prepare(read_run_plan(frozen))
    target = job.initial_target(job.source, 0)
    start = snapshot(target)
    moved = ends_away_from(start)
    half = [{n: torch.lerp(start[n], t, 0.5) if t.is_floating_point() else t for n, t in end.items()} for end in moved]
    result = FitResult(1, 1, 1, {}, {}, "end")
    found = [
        novelty_of(
            job.outputs,
            Arm(target, result, alpha=alpha),
            CrossValidation([], 3, {}, ends=ends),
            lambda: job.initial_target(job.source, 0),
        )
        for alpha, ends in ((0.5, moved), (1.0, half), (1.0, moved))
    ]
    by_hand = [held_out(job, ends)[threshold_rank(60) - 1] for ends in (half, half, moved)]
    assert [n and n.threshold for n in found] == pytest.approx(by_hand, rel=1e-4)
    assert abs(by_hand[0] / by_hand[2] - 1) > 0.01  # so that the point matters


@pytest.mark.slow
def test_too_few_rows_or_too_large_weights_leave_no_threshold(
    make_pictures: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = make_pictures(tmp_path / "few", train=6, test=2)  # 18 rows: a nineteenth could be the threshold
    assert read_novelty(fitted(few, weights, tmp_path / "a") / "model") is None
    monkeypatch.setattr(folds_module, "MAX_KEPT_BYTES", 1000)
    enough = make_pictures(tmp_path / "enough", train=7, test=2)
    run = fitted(enough, weights, tmp_path / "b")
    assert read_novelty(run / "model") is None
    assert not any("end/" in p.name for p in run.rglob("*"))


@pytest.mark.slow
def test_averaged_folds_have_their_threshold_too(make_pictures: Any, weights: Path, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "few", train=7, test=2)
    run = fitted(data, weights, tmp_path / "run", **{"fit.after_folds": "average"})
    novelty = read_novelty(run / "model")
    assert novelty is not None and novelty.held_out == novelty.rows == 21 and np.isfinite(novelty.threshold)


def test_a_fold_without_a_used_row_costs_no_run(frozen: Path) -> None:
    """Of many rows some are used; a fold of one large group may have none of them."""
    job = prepare(read_run_plan(frozen))
    folds = job.data.folds()
    cross = CrossValidation([], 3, {}, ends=ends_away_from(snapshot(job.initial_target(job.source, 0))))
    distances = [
        distances_by_folds(job.outputs, job.initial_target(job.source, 0), 1.0, cross, set(used))
        for used in (folds[0][0], folds[0][1])  # without the first fold, and the first fold alone
    ]
    assert distances[0] is not None and len(distances[0]) == len(folds[0][0]) and distances[1] is None
