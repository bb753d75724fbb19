"""Loss of a linear probe on a part of train: accuracy and log loss on held-out rows, by rows of a class.

    python benchmarks/probe_rows.py                  drawn features, of which the best accuracy is known
    python benchmarks/probe_rows.py DATA [SOURCE]    a source's features of a data set's train and val

Drawn: 100 classes with means of length 3.5 in 256 dimensions and a shared covariance of 1, so a linear
head is the best there is; 500 rows of a class, 10,000 rows to judge by and as many to choose λ by. A part is
what `choose_rows` takes; "then over all rows" is what a fit does that may have no more rows at once.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from regraft.evidence.linear_probe import choose_rows, fit_probe
from regraft.model.forward import Outputs
from regraft.pipeline.prepare import prepare
from regraft.plan.read import check
from regraft.tasks import Task
from regraft.tasks.classification import Classification

CLASSES, WIDE, EACH, LENGTH = 100, 256, 500, 3.5
PARTS = (32, 16, 8, 4, 2, 1)  # of train
STRENGTHS = [1e-3, 1e-2, 1e-1, 1.0]


def drawn() -> tuple[Outputs, Outputs, Outputs, Task]:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, WIDE))
    means *= LENGTH / np.linalg.norm(means, axis=1, keepdims=True)

    def rows(n: int) -> Outputs:
        truth = rng.integers(0, CLASSES, n)
        values = (means[truth] + rng.standard_normal((n, WIDE))).astype(np.float32)
        ids = tuple(f"{i:08x}" for i in rng.permutation(n))
        return Outputs(ids, torch.from_numpy(values), torch.from_numpy(truth))

    train, val, judged = rows(CLASSES * EACH), rows(10_000), rows(10_000)
    best = (judged.values.numpy() @ means.T - LENGTH**2 / 2).argmax(1) == judged.targets.numpy()
    print(f"the best rule: accuracy {best.mean():.3f}", flush=True)
    task = Classification().make([(f"{i:03d}",) for i in range(CLASSES)], ("label",))
    return train, val, judged, task


def brought(data: str, source: str) -> tuple[Outputs, Outputs, Outputs, Task]:
    job = prepare(check({"data": {"path": data}, "source": {"ref": source}}))
    train, val = (job.outputs.features(split) for split in ("train", "val"))
    return train, val, val, job.data.task


def main() -> None:
    if len(sys.argv) > 1:
        source = sys.argv[2] if len(sys.argv) > 2 else "bundled:all-minilm-l6-v2"
        train, val, judged, task = brought(sys.argv[1], source)
    else:
        train, val, judged, task = drawn()
    n = len(train.ids)
    print("rows of a class   alone: accuracy, log loss, CPU s   then over all rows")
    for part in PARTS:
        found = []
        some = train.take(choose_rows(train, n // part))
        for rows, most in ((some, n), (train, n // part)) if part > 1 else ((some, n),):
            began = time.process_time()
            probe = fit_probe(rows, task, STRENGTHS, val=val, most=most)
            logits = probe.logits(judged.values)
            accuracy = float((logits.argmax(1) == judged.targets).float().mean())
            loss = float(task.loss(logits, judged.targets).mean())
            found.append(f"{accuracy:.3f}, {loss:.3f}, {time.process_time() - began:.1f}")
        print(f"{n / part / task.outputs:>15.1f}   {'   '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
