"""The distance to the training data, its threshold and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.errors import SourceError
from regraft.evidence import ood as novelty
from regraft.evidence.ood import fit_novelty, read_novelty, threshold_rank, to_tensors


def drawn(seed: int, n: int, classes: int = 3, d: int = 24):
    """Features around a centre a class, wide along two directions; and their class numbers."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(99).normal(size=(classes, d))
    numbers = rng.integers(0, classes, n)
    spread = np.ones(d)
    spread[:2] = 5.0
    return centres[numbers] + rng.normal(size=(n, d)) * spread, numbers


def test_with_every_direction_it_is_the_distance_of_mahalanobis(monkeypatch):
    monkeypatch.setattr(novelty, "MAX_DIRECTIONS", 1000)
    train, numbers = drawn(0, 400)
    found = fit_novelty(train, numbers, drawn(1, 100)[0])
    rows = train / np.linalg.norm(train, axis=1, keepdims=True)
    means = np.stack([rows[numbers == c].mean(0) for c in range(3)])
    within = rows - means[numbers]
    inverse = np.linalg.pinv(within.T @ within / (400 - 3))
    new = drawn(2, 20)[0]
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    by_hand = [min((u - m) @ inverse @ (u - m) for m in means) for u in unit]
    # the last direction has the variance of "the others", which is its own
    np.testing.assert_allclose(found.distances(new) ** 2 * 24, by_hand, rtol=1e-4)


def test_the_rest_of_the_variance_is_spread_over_the_rest():
    train, numbers = drawn(0, 400)
    found = fit_novelty(train, numbers, drawn(1, 100)[0])
    rows = train / np.linalg.norm(train, axis=1, keepdims=True)
    means = np.stack([rows[numbers == c].mean(0) for c in range(3)])
    total = ((rows - means[numbers]) ** 2).sum() / (400 - 3)
    kept = found.variances.sum() + found.rest * (24 - len(found.variances))
    assert kept == pytest.approx(total, rel=1e-5)


def test_the_warning_is_as_often_false_as_is_said():
    rates, inside = [], 0
    for seed in range(60):
        train, numbers = drawn(3 * seed, 150)
        found = fit_novelty(train, numbers, drawn(3 * seed + 1, 99)[0])
        rate = (found.distances(drawn(3 * seed + 2, 800)[0]) > found.threshold).mean()
        low, high = found.false_alarms()
        rates.append(rate)
        inside += low <= rate <= high
    assert found.expected == pytest.approx(0.05)
    assert np.mean(rates) == pytest.approx(0.05, abs=0.012)
    assert inside >= 52  # of 60, at 95 %


@pytest.mark.parametrize(("n", "k"), [(19, 19), (99, 95), (100, 96), (221, 211)])
def test_the_threshold_is_the_distance_at_its_place(n, k):
    assert threshold_rank(n) == k
    train, numbers = drawn(0, 150)
    held_out = drawn(1, n)[0]
    found = fit_novelty(train, numbers, held_out)
    assert (found.distances(held_out) > found.threshold).sum() == n - k


def test_what_lies_elsewhere_is_unlike_the_training_data():
    train, numbers = drawn(0, 300)
    found = fit_novelty(train, numbers, drawn(1, 100)[0])
    elsewhere = -drawn(2, 50)[0]
    assert (found.distances(elsewhere) > found.threshold).all()


@pytest.mark.parametrize("case", ["few held out", "one row", "no spread"])
def test_without_rows_for_a_threshold_there_is_no_warning(case):
    train, numbers = drawn(0, 60)
    held_out = drawn(1, 18 if case == "few held out" else 40)[0]
    if case == "one row":
        train, numbers = train[:1], numbers[:1]
    if case == "no spread":
        train, numbers = np.ones((60, 24)), np.zeros(60, int)
    assert fit_novelty(train, numbers, held_out) is None


def test_more_features_than_rows_are_no_obstacle():
    train, numbers = drawn(0, 30, d=200)
    found = fit_novelty(train, numbers, drawn(1, 40, d=200)[0])
    assert np.isfinite(found.distances(drawn(2, 5, d=200)[0])).all()


@pytest.fixture
def model(tmp_path):
    """A model folder with weights and their measure."""
    train, numbers = drawn(0, 100)
    made = fit_novelty(train, numbers, drawn(1, 40)[0])
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    about = {"schema": "1", "weights": novelty.weights_digest(tmp_path)}
    save_file(to_tensors(made), tmp_path / novelty.FILE, about)
    return tmp_path, made, about


def test_the_file_gives_the_same_distances(model):
    folder, made, _ = model
    read = read_novelty(folder)
    new = drawn(2, 10)[0]
    assert (read.distances(new) == made.distances(new)).all()
    assert (read.threshold, read.expected) == (made.threshold, made.expected)


def test_a_measure_of_other_weights_is_not_used(model):
    folder, _, _ = model
    save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    assert read_novelty(folder) is None


def test_a_run_without_the_file_has_no_measure(tmp_path):
    assert read_novelty(tmp_path) is None


@pytest.mark.parametrize("case", ["schema", "cut", "missing", "shape"])
def test_a_damaged_file_is_said(model, case):
    folder, _, about = model
    path = folder / novelty.FILE
    tensors = load_file(path)
    if case == "schema":
        save_file(tensors, path, about | {"schema": "9"})
    elif case == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors.pop("rest") if case == "missing" else tensors.update(variances=torch.ones(5))
        save_file(tensors, path, about)
    with pytest.raises(SourceError, match=r"novelty\.safetensors"):
        read_novelty(folder)
