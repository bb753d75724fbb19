"""Power of the verdict at the gain that ``regraft plan`` states, simulated.

    python benchmarks/power.py [--draws 2000] [--seed 0]

Rows are right under both models, one of them, or none, by the assumptions of ``regraft.evidence.power``. Each seed
then turns some rows, so that its accuracy on these rows moves by a normal draw. ``decide`` judges each draw, and
``gain`` where there is one seed. The stated power is 80 %. Two further columns have the power where the seeds vary
half and one and a half times as much as assumed.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import numpy as np

from regraft.evidence.power import DISAGREEMENT, SEEDS_SD, Control, detectable_gain
from regraft.evidence.scoring import Predictions, gain
from regraft.evidence.verdict import decide
from regraft.metrics import accuracy


def scored(right: Any) -> Predictions:
    """Return predictions of rows of class 1, right where ``right`` is 1."""
    return Predictions(tuple(map(str, range(len(right)))), np.ones(len(right), int), np.eye(2)[right])


def turned(rng: Any, right: Any, sd: float) -> Predictions:
    """Return a seed's predictions: its accuracy differs from that of ``right`` by a normal draw, as whole rows."""
    count = round(rng.normal(0, sd) * len(right))
    able = np.flatnonzero(right == (count < 0))
    seed = right.copy()
    seed[rng.permutation(able)[: abs(count)]] = int(count > 0)
    return scored(seed)


def shown(rng: Any, n: int, seeds: int, control: Control, effect: float, sd: float = SEEDS_SD) -> bool:
    """Return whether one draw of rows and seeds shows the gain."""
    one = DISAGREEMENT / 2
    kinds = rng.choice(4, n, p=[one + effect, one, 0.7 * (1 - 2 * one - effect), 0.3 * (1 - 2 * one - effect)])
    fit, other = np.isin(kinds, (0, 2)).astype(int), np.isin(kinds, (1, 2)).astype(int)
    if seeds == 1:
        return gain(accuracy, scored(fit), scored(other)).low > 0
    paired = control == "linear probe"
    probe = scored(other)
    pairs = [(turned(rng, fit, sd), probe if paired else turned(rng, other, sd)) for _ in range(seeds)]
    found = decide(accuracy, pairs, paired=paired).gain
    return found is not None and found.low > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"{args.draws} draws a figure; standard error of a power of 0.8 is {(0.16 / args.draws) ** 0.5:.4f}")
    print("control, seeds, rows: gain stated; power; with half the spread of seeds, one and a half times")
    controls: tuple[Control, ...] = ("scratch", "linear probe")
    for control, seeds, n in product(controls, (1, 3, 5, 10), (30, 100, 300, 1_000)):
        effect = detectable_gain(n, seeds, control)
        if effect is None:
            print(f"{control}, {seeds}, {n}: no gain", flush=True)
            continue
        found = [
            np.mean([shown(rng, n, seeds, control, effect, share * SEEDS_SD) for _ in range(args.draws)])
            for share in ((1,) if seeds == 1 else (1, 0.5, 1.5))
        ]
        print(f"{control}, {seeds}, {n}: {effect:.4f}; " + ", ".join(f"{f:.4f}" for f in found), flush=True)


if __name__ == "__main__":
    main()
