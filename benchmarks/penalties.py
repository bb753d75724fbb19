"""Penalties against plain fine-tuning: what the target gains and what the source keeps.

    python benchmarks/penalties.py FLOWERS SOURCE_DATA FOLDER [--epochs N] [--average DECAY]

FLOWERS is cut to 20 training, 12 val and 48 test pictures a class, at 128 pixels, from EfficientNet-Lite0. Plain
fine-tuning at three rates, three seeds each; every penalty at 3e-4 with three strengths on the first seed, then
the one with the best source select rows, of those within two points of plain on val (the best on val where there
is none), on three seeds. Then seven seeds more of plain 3e-4 and of the two penalties with the best val over the
three, since three seeds carry t = 4.3 and ten 2.3. Figures are on test and on the source's report rows, at α = 1
and at the α chosen on val. A run that is there already is read, not made again, so the script can be stopped and
started. --epochs and --average (the decay of a moving average of the weights) are those of every fit, plain or
not, where not the default plan's; choose them by the val figures of plain, which are printed first.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from flowers import wide_cut
from safetensors.torch import load_file

from regraft.evidence.scoring import Predictions, score
from regraft.evidence.verdict import decide
from regraft.pipeline.finish import read_ends
from regraft.pipeline.job import Job
from regraft.pipeline.prepare import prepare
from regraft.pipeline.run import run
from regraft.plan import read
from regraft.runs.result import finished

TRAIN, VAL, SIDE = 20, 12, 128
SEEDS, ALL_SEEDS = range(3), range(10)
RATES = (1e-4, 3e-4, 1e-3)
RATE = 3e-4
PENALTIES = {
    "l2_sp": {"alpha": (0.01, 0.1, 1.0)},
    "ewc": {"strength": (1.0, 10.0, 100.0)},  # 1,000 and more hold the start, by val
    "lwf": {"strength": (0.03, 0.1, 0.3)},
    "replay": {"strength": (0.03, 0.1, 0.3)},
    "delta": {"strength": (0.0001, 0.001, 0.01)},
}
TOLERATED = 0.02  # of val accuracy under plain, when a strength is chosen


class Bench:
    def __init__(self, flowers: Path, source_data: Path, out: Path, options: dict) -> None:
        self.flowers = wide_cut(flowers, out / "flowers", TRAIN, VAL)
        self.source_data, self.out, self.options = source_data, out, options  # of [fit]
        self.prepared: Job | None = None
        self.before: Predictions | None = None

    def fit(self, name: str, seed: int, rate: float, penalties: dict) -> Path:
        path = self.out / f"{name}-{seed}"
        if not (path / "result.json").exists():
            run(
                read.check(
                    {
                        "source": {"ref": "bundled:efficientnet-lite0", "image_size": SIDE},
                        "data": {"path": str(self.flowers)},
                        "source_data": {"path": str(self.source_data)},
                        "fit": {"lr": rate, "head_lr": rate, "allow_large_lr": True} | self.options,
                        "regularizers": penalties,
                        "run": {"out": str(path), "seed": seed},
                    }
                )
            )
        return path

    def ready(self, path: Path) -> Job:
        """Prepare the rows and models that all runs share, from the plan of any run."""
        if self.prepared is None:
            tree = read.read_plan(path / "plan.toml", {}).model_dump(exclude_none=True)
            tree["regularizers"] = {}
            self.prepared = prepare(read.check(tree))
            self.before = self.report(self.prepared.source.backbone)
        return self.prepared

    def rows(self, path: Path, alpha: float | None) -> tuple[Predictions, Predictions]:
        """Return (test, report) of a run at α = 1, or at its chosen α where ``alpha`` is None."""
        p = self.ready(path)
        if alpha is None or not walked(path):
            state = load_file(path / "model" / "model.safetensors")
        else:
            state = read_ends(path)[1]
        p.target.model.load_state_dict(state)
        test = score(p.outputs.logits(p.target, "test"), p.data.task, p.data.splits.test)
        return test, self.report(p.target.model.get_submodule("backbone"))

    def end_point(self, path: Path) -> tuple[float, float]:
        """Return (val accuracy, source accuracy on select) of α = 1."""
        if points := walked(path):
            return points[-1].figures["accuracy"], points[-1].source.after
        p = self.ready(path)
        assert p.source_data is not None
        select = p.source_data.scored(p.source.backbone, "select")
        return finished(path).val["accuracy"].value, accuracy(select)

    def report(self, backbone: torch.nn.Module) -> Predictions:
        p = self.prepared
        assert p is not None and p.source_data is not None
        return p.source_data.scored(backbone, "report")


def walked(path: Path) -> list:
    """Return the points of a run's frontier; none where no epoch beat the start on val, which is then the model."""
    frontier = finished(path).frontier
    return frontier.points if frontier else []


def accuracy(rows: Predictions) -> float:
    return float((rows.scores.argmax(1) == rows.truth).mean())


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} (sd {np.std(values, ddof=1):.3f})"


Rows = list[tuple[Predictions, Predictions]]


def main(flowers: Path, source_data: Path, out: Path, options: dict) -> None:
    bench = Bench(flowers, source_data, out, options)

    def add(found: dict[str, Rows], name: str, paths: list[Path]) -> None:
        for label, alpha in ((f"{name}, α = 1", 1.0), (f"{name}, α chosen", None)):
            found[label] = [bench.rows(p, alpha) for p in paths]
            target, source = ([accuracy(r[i]) for r in found[label]] for i in (0, 1))
            print(f"{label:<28} target {spread(target)}   source {spread(source)}", flush=True)

    few: dict[str, Rows] = {}
    ends = [bench.end_point(bench.fit(f"plain-{RATE:g}", s, RATE, {})) for s in SEEDS]
    print(f"plain {RATE:g} at α = 1: val {np.mean([v for v, _ in ends]):.3f} {ends}", flush=True)
    for rate in RATES:
        add(few, f"plain {rate:g}", [bench.fit(f"plain-{rate:g}", s, rate, {}) for s in SEEDS])
    print(f"source before: {accuracy(bench.before):.3f}, n = {len(bench.before)}", flush=True)
    plain_val, _ = bench.end_point(bench.fit(f"plain-{RATE:g}", SEEDS[0], RATE, {}))
    chosen: dict[str, tuple[str, dict]] = {}
    vals: dict[str, float] = {}
    for name, options in PENALTIES.items():
        ((key, strengths),) = options.items()
        tried = {s: bench.end_point(bench.fit(f"{name}-{s:g}", SEEDS[0], RATE, {name: {key: s}})) for s in strengths}
        near = [s for s in strengths if tried[s][0] >= plain_val - TOLERATED]
        best = max(near, key=lambda s: tried[s][1]) if near else max(tried, key=tried.__getitem__)
        print(f"{name}: (val, select) by {key}: {tried}; chosen {best:g}", flush=True)
        stem, penalties = chosen[f"{name} {best:g}"] = (f"{name}-{best:g}", {name: {key: best}})
        paths = [bench.fit(stem, s, RATE, penalties) for s in SEEDS]
        add(few, f"{name} {best:g}", paths)
        vals[f"{name} {best:g}"] = float(np.mean([bench.end_point(p)[0] for p in paths]))
    compare(bench, few)
    print(f"val at α = 1, mean of three seeds: {vals}", flush=True)
    many: dict[str, Rows] = {}
    two = sorted(vals, key=vals.__getitem__)[-2:]
    plain = {f"plain {RATE:g}": (f"plain-{RATE:g}", dict[str, dict]())}
    for label, (stem, penalties) in (plain | {n: chosen[n] for n in two}).items():
        add(many, label, [bench.fit(stem, s, RATE, penalties) for s in ALL_SEEDS])
    compare(bench, many)


def compare(bench: Bench, found: dict[str, Rows]) -> None:
    p = bench.prepared
    assert p is not None and p.source_data is not None
    for against in (f"plain {RATE:g}, α = 1", f"plain {RATE:g}, α chosen"):
        print(f"paired gains over {against}, over {len(found[against])} seeds and rows")
        for label, arms in found.items():
            if label == against:
                continue
            gains = [
                decide(m, [(a[i], b[i]) for a, b in zip(arms, found[against], strict=True)], paired=True).gain
                for i, m in enumerate((p.metric, p.source_data.metric))
            ]
            say = [f"{g.value:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in gains]
            print(f"  {label:<28} target {say[0]}   source {say[1]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("flowers", "source_data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default="auto")
    parser.add_argument("--average", type=float, default=0.0)
    asked = vars(parser.parse_args())
    main(*(asked.pop(n) for n in ("flowers", "source_data", "out")), asked)
