"""Filters of cleanlab on flipped labels: which one finds most?  python benchmarks/label_errors.py PHOTOS DRAWS

Each draw takes 24 of each class of PHOTOS (17 flowers; 400 in all), gives 10 of them a wrong label, and
asks a linear probe on EfficientNet-Lite0's features by five folds, as `regraft check` does. λ is chosen
on a fifth of them. The features are computed once.
"""

import sys
import warnings

import numpy as np
import torch
from cleanlab.filter import find_label_issues

import regraft.plan as plans
from regraft.evidence.linear_probe import fit_probe, folds_of
from regraft.model.forward import Outputs, joined
from regraft.pipeline.prepare import prepare

ROWS, FLIPS, FOLDS = 400, 10, 5
WAYS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "low_normalized_margin",
    "low_self_confidence",
    "predicted_neq_given",
)


def main(photos: str, draws: int) -> None:
    plan = plans.check({"data": {"path": photos}, "source": {"ref": "bundled:efficientnet-lite0"}})
    job = prepare(plan)
    task = job.data.task
    every = joined([job.outputs.features(split) for split in job.data.targets])
    true, count = every.targets.numpy(), task.outputs
    each = -(-ROWS // count)
    hits = {way: [] for way in WAYS}
    named = {way: [] for way in WAYS}
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        rows = [rng.choice(np.flatnonzero(true == c), each, replace=False) for c in range(count)]
        index = rng.permutation(np.concatenate(rows))[:ROWS]
        given = true[index].copy()
        flipped = rng.choice(ROWS, FLIPS, replace=False)
        given[flipped] = (given[flipped] + rng.integers(1, count, FLIPS)) % count
        drawn = every.take(index.tolist())
        drawn = Outputs(drawn.ids, drawn.values, torch.from_numpy(given))
        order = rng.permutation(ROWS).tolist()
        val, train = drawn.take(order[: ROWS // 5]), drawn.take(order[ROWS // 5 :])
        strength = fit_probe(train, task, plan.probe.strengths, val=val).strength
        said = np.zeros((ROWS, count))
        for fit, judge in folds_of([str(c) for c in given], [None] * ROWS, FOLDS):
            probe = fit_probe(drawn.take(fit), task, [strength])
            said[judge] = task.scores(probe.logits(drawn.values[judge])).numpy()
        for way in WAYS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                suspects = find_label_issues(given, said, filter_by=way, n_jobs=1)
            hits[way].append(int(suspects[flipped].sum()))
            named[way].append(int(suspects.sum()))
    print(f"{FLIPS} flips among {ROWS}, {draws} draws: found (mean, least, draws with 7 or more), suspects (mean)")
    for way in WAYS:
        found = np.array(hits[way])
        print(
            f"| `{way}` | {found.mean():.1f} | {found.min()} | {(found >= 7).sum()} of {draws} "
            f"| {np.mean(named[way]):.1f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]))
