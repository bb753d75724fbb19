"""The score of a plan without test: that of a run on val or over folds, whatever the test rows hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import regraft
from regraft.errors import DataError, PlanError
from regraft.pipeline.target_data import TargetData
from regraft.pipeline.trial import Score, score_plan
from regraft.plan.read import read_plan


def write_rows(folder: Path, counts: dict[str, int], poison: bool = False) -> Path:
    """Write a table of small pictures by split; with ``poison`` the test rows are other pictures with one label."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    rows = [("file", "label", "split")]
    for split, n in counts.items():
        for i in range(n):
            name = "ab"[i % 2]
            pixels = 90 + 30 * (i % 2) + rng.normal(0, 20) + rng.integers(-60, 61, (24, 24, 3))
            if poison and split == "test":
                pixels, name = other.integers(0, 256, (24, 24, 3)), "b"
            file = f"{split}{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
            rows.append((file, name, split))
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "rows.csv"


def settings(data: Path, flags: list[str], **more: Any) -> dict[str, Any]:
    return {
        "source.ref": "timm:test_resnet",
        "source.weights": flags[3],
        "source.image_size": 32,
        "data.path": str(data),
        "data.image": "file",
        "data.label": ["label"],
        "data.split": "split",
        "run.threads": 1,
        "fit.epochs": 2,
        "fit.lr": 5e-4,
        "fit.batch_size": 8,
    } | more


def score(data: Path, flags: list[str], watch: Any = lambda step, figures: None, **more: Any) -> Score:
    return score_plan(read_plan(None, settings(data, flags, **more)), watch=watch)


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data", {"train": 24, "val": 12, "test": 8})


def test_a_score_on_val_is_that_of_a_run(rows: Path, tiny_weights: list[str], tmp_path: Path) -> None:
    seen: list[int] = []
    found = score(rows, tiny_weights, lambda step, figures: seen.append(step))
    given = settings(rows, tiny_weights)
    source, data = given.pop("source.ref"), given.pop("data.path")
    regraft.fit(data, source=source, out=tmp_path / "run", settings=given)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    chosen = next(p for p in result["frontier"]["points"] if p["alpha"] == result["frontier"]["alpha"])
    assert found.alpha == chosen["alpha"] and found.by == "val"
    assert found.figures == pytest.approx(chosen["figures"])
    assert seen == [0, 1, 2]  # the starting point, then each epoch
    # against scikit-learn, on the logits that came with it
    truth, chances = found.rows.targets.numpy(), found.rows.values.softmax(1).numpy()
    assert len(truth) == 12 and found.figures["accuracy"] == accuracy_score(truth, chances.argmax(1))
    assert found.figures["loss"] == pytest.approx(log_loss(truth, chances), abs=1e-5)


@pytest.mark.slow
def test_a_score_over_folds_is_that_of_a_run(tiny_weights: list[str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "data", {"train": 30, "test": 8})
    seen: list[tuple[int, dict[str, float]]] = []
    found = score(rows, tiny_weights, lambda step, figures: seen.append((step, figures)), **{"data.folds": 3})
    given = settings(rows, tiny_weights, **{"data.folds": 3})
    source, data = given.pop("source.ref"), given.pop("data.path")
    regraft.fit(data, source=source, out=tmp_path / "run", settings=given)
    frontier = json.loads((tmp_path / "run" / "result.json").read_text())["frontier"]
    chosen = next(p for p in frontier["points"] if p["alpha"] == frontier["alpha"])
    assert found.alpha == chosen["alpha"] and found.figures == pytest.approx(chosen["figures"])
    assert found.by == "3-fold cross-validation" and len(found.rows.targets) == 30
    truth = found.rows.targets.numpy()
    assert found.figures["accuracy"] == accuracy_score(truth, found.rows.values.argmax(1).numpy())
    assert [step for step, _ in seen] == [1, 2, 3] and seen[-1][1] == found.figures


@pytest.mark.parametrize("folds", [0, 3])
def test_test_rows_reach_no_score(
    folds: int, tiny_weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poisoned test rows change no bit; no batch of test is made; the ledger stays closed."""
    counts = {"train": 24, "test": 8} | ({} if folds else {"val": 12})
    more = {"data.folds": folds} if folds else {}
    clean = score(write_rows(tmp_path / "clean", counts), tiny_weights, **more)
    poisoned_data = write_rows(tmp_path / "poisoned", counts, poison=True)
    make = TargetData.batches

    def batches(self: TargetData, split: str, *args: Any, **how: Any) -> Any:
        assert split != "test"
        return make(self, split, *args, **how)

    monkeypatch.setattr(TargetData, "batches", batches)
    poisoned = score(poisoned_data, tiny_weights, **more)
    assert torch.equal(clean.rows.values, poisoned.rows.values) and clean.figures == poisoned.figures
    from regraft.runs.ledger import ledger_path

    assert not ledger_path().exists()


def test_what_watches_can_end_a_score(rows: Path, tiny_weights: list[str]) -> None:
    class EnoughError(Exception):
        pass

    def watch(step: int, figures: dict[str, float]) -> None:
        if step == 1:
            raise EnoughError

    with pytest.raises(EnoughError):
        score(rows, tiny_weights, watch)


def test_a_plan_that_no_row_can_judge_is_refused(tiny_weights: list[str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "data", {"train": 3, "test": 4})
    with pytest.raises(DataError, match="too few rows"):
        score(rows, tiny_weights)


def test_folds_score_the_points_that_a_plan_can_name(tiny_weights: list[str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "data", {"train": 30, "test": 8})
    with pytest.raises(PlanError, match=r"fit\.alpha.*0\.55"):
        score(rows, tiny_weights, **{"data.folds": 3, "fit.alpha": 0.55})
    assert score(rows, tiny_weights, **{"data.folds": 3, "fit.alpha": 0.1 * 3}).alpha == 0.3
    assert score(rows, tiny_weights, **{"data.folds": 3, "fit.start": "random"}).alpha == 1.0
