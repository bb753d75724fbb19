"""A league: every arm on every small set, several draws of the labelled rows a set, on the same rows.

    python benchmarks/league.py DATA --out league.jsonl --judge spare --arms regraft,logistic,hf10
    python benchmarks/league.py DATA --out league.jsonl --judge test --table

DATA is the folder of the sets (see league_sets.py). ``--judge spare`` scores labelled rows that the draw left over:
settings are chosen on them. ``--judge test`` opens the test rows: once for each candidate default. A line of --out is
a fit; a line that is there is not made again. ``--jobs 2`` makes two fits at a time, each on one thread.

Arms:

- regraft: the default plan, on the labelled rows as they are. Settings may follow after spaces, as in
  "regraft fit.epochs=10 fit.start=random".
- logistic: scikit-learn's logistic regression on the frozen, standardised features, with C by cross-validation on
  all labelled rows; ridge regression for numbers.
- hf3, hf10 (texts): HF Trainer at its rate of 5e-5, batches of 16, for 3 and 10 epochs.
- loop10 (pictures): a plain PyTorch loop with AdamW at 1e-4, a random head and frozen batch norms for 10 epochs.
- fastai5 (pictures): fastai's ``fine_tune(5)``, where fastai is installed.

The table has the mean and the mean rank of each arm over sets, and the difference of the first arm to each other.
Its interval is a bootstrap over sets and, within a set, over draws: 2,000 draws with seed 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from league_arms import ARMS, Fit, fits
from league_sets import SETS, Set, write
from race import since_start, versions
from scipy.stats import rankdata

MARK = "league: "


# ---------------------------------------------------------------- the parent


def measure(args: argparse.Namespace, about: Set, number: int, arm: str) -> None:
    """Make one fit in a child process, and append its line to --out."""
    with tempfile.TemporaryDirectory(prefix="league-") as work:
        command = [sys.executable, __file__, str(args.data), "--out", str(args.out), "--judge", args.judge]
        command += ["--child", json.dumps([about.name, number, arm, work])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RACE_BEGAN": repr(time.monotonic()),
            "REGRAFT_STATE": f"{work}/state",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    marked = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not marked:
        print(f"{about.name}, draw {number}, {arm}: failed\n{done.stderr[-1500:]}", flush=True)
        return
    line = json.loads(marked[-1].removeprefix(MARK))
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{about.name} {number} {arm}: {line['score']:.3f} in {line['seconds']:.0f} s", flush=True)


def child(args: argparse.Namespace) -> None:
    """Make one fit, and print its line."""
    name, number, arm, work = json.loads(args.child)
    about = next(s for s in SETS if s.name == name)
    table = write(args.data, about, number, args.judge, Path(work) / "data")
    fit = Fit(about, table, number, Path(work))
    first, *settings = arm.split()
    began = time.monotonic()
    figures = ARMS[first](fit, settings)
    line = {"set": name, "draw": number, "arm": arm, "judge": args.judge, "metric": about.metric, **figures}
    line |= {
        "seconds": round(time.monotonic() - began, 2),
        "since start": round(since_start(), 2),
        "versions": versions(),
    }
    print(MARK + json.dumps(line), flush=True)


# ---------------------------------------------------------------- the table


def scores(lines: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Return arm → set → draw → score."""
    found: dict[str, dict[str, dict[int, float]]] = {arm: {} for arm in arms}
    for line in lines:
        if line["arm"] in found:
            found[line["arm"]].setdefault(line["set"], {})[line["draw"]] = line["score"]
    return found


def over_sets(differences: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean over sets, and a 95 % interval: a bootstrap over sets, and over draws within each set."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        picked = rng.integers(len(differences), size=len(differences))
        means.append(np.mean([np.mean(rng.choice(differences[i], len(differences[i]))) for i in picked]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([np.mean(d) for d in differences])), float(low), float(high)


def table(lines: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    """Print scores by set, means and ranks, and the first arm's differences."""
    found = scores(lines, arms)
    sets = [s.name for s in SETS if any(s.name in found[a] for a in arms)]
    width = max(map(len, arms), default=10)
    print(f"\n{'set':<22}" + " ".join(f"{a:>{max(7, len(a))}}" for a in arms))
    for name in sets:
        cells = [f"{np.mean(list(found[a][name].values())):.3f}" if name in found[a] else "–" for a in arms]
        print(f"{name:<22}" + " ".join(f"{c:>{max(7, len(a))}}" for c, a in zip(cells, arms, strict=True)))
    whole = [s for s in sets if all(s in found[a] for a in arms)]
    if whole:
        means = {a: np.array([np.mean(list(found[a][s].values())) for s in whole]) for a in arms}
        ranks = rankdata([-means[a] for a in arms], axis=0)
        print(f"over the {len(whole)} sets that all arms have:")
        for a, own in zip(arms, ranks, strict=True):
            print(f"  {a:<{width}} mean {means[a].mean():.3f}   mean rank {own.mean():.2f}")
    first, *others = arms
    if others:
        print(f"\n{first} −")
    for arm in others:
        shared = [s for s in found[first] if s in found[arm]]
        paired = [[found[first][s][d] - v for d, v in found[arm][s].items() if d in found[first][s]] for s in shared]
        paired = [d for d in paired if d]
        if paired:
            mean, low, high = over_sets(paired)
            worst = min(zip((float(np.mean(d)) for d in paired), shared, strict=True))
            over = f"over {len(paired)} sets; least {worst[0]:+.3f} ({worst[1]})"
            print(f"  {arm:<{width}} {mean:+.3f} [{low:+.3f}, {high:+.3f}] {over}")
    seconds = {a: [x["seconds"] for x in lines if x["arm"] == a] for a in arms}
    print("\nseconds a fit, mean: " + ", ".join(f"{a} {np.mean(s):.0f}" for a, s in seconds.items() if s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument("--judge", choices=("spare", "test"), default="spare")
    parser.add_argument("--arms", default="regraft,logistic,hf10,loop10", help="comma-separated: %(default)s")
    parser.add_argument("--sets", default=",".join(s.name for s in SETS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    arms, names = args.arms.split(","), args.sets.split(",")
    if unknown := [a for a in arms if a.split()[0] not in ARMS] + [n for n in names if n not in {s.name for s in SETS}]:
        raise SystemExit(f"there is no {unknown[0]}; arms: {', '.join(ARMS)}; sets: {', '.join(s.name for s in SETS)}")

    def lines() -> list[dict[str, Any]]:
        if not args.out.exists():
            return []
        every = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
        return [x for x in every if x["judge"] == args.judge and x["set"] in names]

    if not args.table:
        done = {(x["set"], x["draw"], x["arm"]) for x in lines()}
        wanted = [(s, d, a) for d in range(args.draws) for s in SETS if s.name in names for a in arms if fits(a, s)]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda w: measure(args, *w), [w for w in wanted if (w[0].name, w[1], w[2]) not in done]))
    table(lines(), arms)


if __name__ == "__main__":
    main()
