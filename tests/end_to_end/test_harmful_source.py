"""A source whose weights were shuffled must not be said to help."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import regraft
from builders import read_floats
from regraft.data.types import CallableSpec
from regraft.model.types import Source

CLASSES, SIDE = 3, 12
REPEATS, SEEDS = 12, 3
Rule = tuple[np.ndarray, np.ndarray]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Linear(SIDE, 32), nn.ReLU())
        self.high = nn.Sequential(nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.high(self.low(x)))
        return logits


def drawn(rng: np.random.Generator, rule: Rule, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their classes by a fixed rule of products of columns, which no linear head finds."""
    x = rng.normal(size=(n, SIDE))
    return x, (np.tanh(x @ rule[0]) @ rule[1]).argmax(1)


def trained(rng: np.random.Generator, rule: Rule, seed: int) -> Net:
    torch.manual_seed(seed)
    x, y = (torch.from_numpy(a) for a in drawn(rng, rule, 2000))
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x.float()), y).backward()
        optimizer.step()
    return net


def write(folder: Path, rng: np.random.Generator, rule: Rule) -> Path:
    for name, n in (("train", 60), ("test", 200)):
        x, y = drawn(rng, rule, n)
        y[: 2 * CLASSES] = np.tile(np.arange(CLASSES), 2)  # every class is there
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for row, c in zip(x, y, strict=True):
                writer.writerow([" ".join(f"{v:.4f}" for v in row), f"c{c}"])
    return folder


def verdict(folder: Path, rng: np.random.Generator, seed: int, shuffled: bool) -> str:
    rule = rng.normal(size=(SIDE, 6)), rng.normal(size=(6, CLASSES))
    net = trained(rng, rule, seed)
    if shuffled:
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    source = Source.from_module(
        net,
        head="head",
        preprocess=CallableSpec(read_floats, kind="text"),
        example=torch.zeros(2, SIDE),
        blocks=[("low", ["low"]), ("high", ["high"])],
    )
    folder.mkdir()
    run = folder / "run"
    settings = {
        "data.text": ["text"],
        "data.label": ["label"],
        "evaluate.controls": ["scratch"],
        "fit.epochs": 10,
        "fit.batch_size": 16,
        "fit.lr": 5e-4,
        "fit.head_lr": 5e-4,
        "fit.scratch_lr": 3e-3,
        "fit.sharpness": 0.0,
        "run.seeds": SEEDS,
        "run.threads": 1,
    }
    source = replace(source, name=f"net-{seed}")
    regraft.fit(write(folder, rng, rule), source=source, out=run, settings=settings)
    words: str = json.loads((run / "result.json").read_text())["verdict"]["words"]
    return words


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_shuffled_source_is_hardly_ever_said_to_help(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [verdict(tmp_path / str(i), rng, i, shuffled=True) for i in range(REPEATS)]
    print({w: words.count(w) for w in set(words)})
    assert words.count("transfer helps") <= 1


@pytest.mark.slow
def test_the_same_source_unshuffled_is(tmp_path: Path) -> None:
    """So that the test above can fail."""
    rng = np.random.default_rng(1)
    words = [verdict(tmp_path / str(i), rng, i, shuffled=False) for i in range(3)]
    assert words.count("transfer helps") >= 2
