"""Fine-tuning from the probe's head (LP-FT) and from a random one, at five labels a class.

    python benchmarks/lp_ft.py FLOWERS FOLDER

Kumar et al. 2022, 2202.10054. 17 flowers, EfficientNet-Lite0, five seeds, both at α = 1 with the same
rate for the backbone. The random head has the best of three rates of its own, by the mean over seeds on
val: with the backbone's rate it would hardly move. A run that is there already is read, not made again.
"""

import sys
from pathlib import Path

import numpy as np
from flowers import cut

from regraft.evidence.comparison import read_judgement
from regraft.evidence.verdict import decide
from regraft.pipeline.run import run
from regraft.plan.read import check
from regraft.runs.result import finished

EACH, SEEDS, HEAD_RATES = 5, range(5), (3e-4, 3e-3, 3e-2)


def fit(data: Path, path: Path, seed: int, settings: dict) -> Path:
    if not (path / "result.json").exists():
        run(
            check(
                {
                    "source": {"ref": "bundled:efficientnet-lite0"},
                    "data": {"path": str(data)},
                    "fit": {"alpha": 1.0, "allow_large_lr": True} | settings,
                    "run": {"out": str(path), "seed": seed},
                }
            )
        )
    return path


def val(path: Path) -> float:
    return finished(path).val["accuracy"].value


def main(flowers: Path, out: Path) -> None:
    data = cut(flowers, out / "flowers", EACH)
    probe = [fit(data, out / f"probe-{s}", s, {"start": "probe"}) for s in SEEDS]
    plain = {
        rate: [fit(data, out / f"plain-{rate:g}-{s}", s, {"start": "random", "head_lr": rate}) for s in SEEDS]
        for rate in HEAD_RATES
    }
    on_val = {rate: float(np.mean([val(p) for p in runs])) for rate, runs in plain.items()}
    best = max(on_val, key=lambda r: on_val[r])
    print(f"val by head rate: {on_val}; {best:g} is taken; from the probe {np.mean([val(p) for p in probe]):.3f}")
    arms = {"from the probe": probe, "random head": plain[best]}
    rows = {name: [read_judgement(p).rows for p in runs] for name, runs in arms.items()}
    for name, scored in rows.items():
        values = [float((s.scores.argmax(1) == s.truth).mean()) for s in scored]
        print(f"{name}: {np.mean(values):.3f} (sd {np.std(values, ddof=1):.3f}) {values}")
    from regraft.metrics import accuracy

    pairs = list(zip(rows["from the probe"], rows["random head"], strict=True))
    print("from the probe over random head:", decide(accuracy, pairs, paired=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
