"""Proximal l1 against l1 as a term and neither: accuracy and exact zeros, on digits that ship in scikit-learn.

A small network learns the digits 0 to 4; from it 5 to 9 are learnt from 20 labels a class by SGD. Test is
every other row of 5 to 9; nothing is chosen on it: every strength that is tried is printed. Half a minute.

    python benchmarks/l1.py
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from regraft.compute.device import Compute
from regraft.data.batches import Batches, LabelledRows
from regraft.data.ordering import EpochOrder
from regraft.data.preprocessing import build
from regraft.data.readers import make_reader
from regraft.data.types import Augment, CallableSpec, Example
from regraft.freezing.everything import Everything
from regraft.metrics import accuracy
from regraft.model.forward import outputs
from regraft.model.grafting import graft
from regraft.model.types import Source
from regraft.regularizers.l1 import L1
from regraft.tasks.classification import Classification
from regraft.training.loop import fine_tune
from regraft.training.records import FitData
from regraft.training.settings import FitSpec, Settings

CPU = Compute()
SEEDS = range(3)
ARMS = {
    "plain": None,
    "term 1e-3": L1(strength=1e-3),
    "proximal 1e-4": L1(strength=1e-4, proximal=True),
    "proximal 1e-3": L1(strength=1e-3, proximal=True),
    "proximal 1e-2": L1(strength=1e-2, proximal=True),
}
PIXELS, DIGITS = load_digits(return_X_y=True)


def pixels(row: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor(PIXELS[int(row[0])] / 16, dtype=torch.float32)


def source() -> Source:
    """Return a network that knows the digits 0 to 4 (full batches, 300 steps of Adam)."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.low = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    net.high = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
    net.fc = nn.Linear(32, 5)
    rows = np.flatnonzero(DIGITS < 5)
    x = torch.tensor(PIXELS[rows] / 16, dtype=torch.float32)
    y = torch.tensor(DIGITS[rows])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    example = torch.zeros(2, 64)
    return Source.from_module(
        net.eval(), head="fc", preprocess=CallableSpec(pixels), example=example, name="digits-0-4"
    )


def batches(rows: np.ndarray, seed: int = 0) -> Batches:
    examples = [Example(f"{i:04d}-0", (str(i),), (str(DIGITS[i]),), f"row {i}") for i in rows]
    targets = torch.tensor(DIGITS[rows] - 5)
    reader = make_reader(build(CallableSpec(pixels)), examples)
    return Batches(LabelledRows(examples, targets), reader, EpochOrder(20, seed))


def main() -> None:
    task = Classification().make([(str(d),) for d in range(5, 10)], ("label",))
    from_digits = source()
    for name, penalty in ARMS.items():
        right, zeros = [], []
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(np.flatnonzero(DIGITS >= 5))
            train = np.concatenate([[i for i in order if DIGITS[i] == d][:20] for d in range(5, 10)])
            test = np.setdiff1d(order, train)
            target = graft(from_digits, 5, seed=seed)
            settings = Settings(
                epochs=30,
                rates=dict.fromkeys([b.name for b in target.blocks], 0.1),
                optimizer="SGD",
                optimizer_options={"momentum": 0.9},
                clip_norm=0.0,
                augment=Augment(random_resized_crop=False, flip=False),
            )
            penalties = {"l1": penalty.prepare(target, None, None)} if penalty else {}
            spec = FitSpec(task, accuracy, settings, Everything(), penalties, seed)
            fine_tune(target, FitData(batches(train, seed)), spec, CPU)
            logits = outputs(target.model, batches(test), CPU)
            right.append(float((logits.values.argmax(1) == logits.targets).float().mean()))
            weights = [p for p in target.model.parameters() if p.ndim > 1]
            count = sum(int((p == 0).sum()) for p in weights)
            zeros.append(count / sum(p.numel() for p in weights))
        print(
            f"{name:<14} accuracy {statistics.mean(right):.3f} (sd {statistics.stdev(right):.3f})   "
            f"zeros {statistics.mean(zeros):.3f} (sd {statistics.stdev(zeros):.3f})   "
            f"{len(SEEDS)} seeds, test n = {len(test)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
