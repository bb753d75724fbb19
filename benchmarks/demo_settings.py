"""Settings of the demo, chosen on digits that the demo never shows (the first half, other writers).

    python benchmarks/demo_settings.py FOLDER [DRAWS]

Per setting: mean accuracy over draws of the labelled digits, two seeds each; scratch is not tried,
so that nothing is chosen by how much transfer wins.
"""

import sys
from pathlib import Path

import numpy as np

from regraft.commands import demo
from regraft.pipeline.run import run
from regraft.plan.read import check
from regraft.runs.result import finished

TUNING = slice(0, demo.SHOWN.start)
SETTINGS = [
    {"lr": 1e-3, "head_lr": 1e-3, "layer_decay": 1.0},
    {"lr": 2e-3, "head_lr": 2e-3, "layer_decay": 1.0},
    {"lr": 2e-3, "head_lr": 2e-3, "layer_decay": 0.7},
    {"lr": 1e-3, "head_lr": 1e-3, "layer_decay": 0.7},
]


def main(folder: Path, draws: int) -> None:
    demo.write_letters(folder / "letters", seed=0)
    source = run(demo.source_plan(folder / "letters", folder / "source"))
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        digits = folder / f"digits-{draw}"
        demo.write_digits(digits, demo.LABELS, draw, TUNING)
        for number, settings in enumerate(SETTINGS):
            tree = demo.target_plan(source, digits, folder / f"run-{draw}-{number}").model_dump()
            tree["fit"] |= settings
            tree["evaluate"]["controls"] = []
            tree["run"]["seeds"] = 2
            result = finished(run(check(tree)))
            arms = {k: v["accuracy"].mean for k, v in result.mean.items()}
            arms.setdefault("α = 1", arms["fit"])  # where it was chosen throughout
            arms["linear probe"] = result.controls["linear probe"]["accuracy"].value
            for arm, value in arms.items():
                found.setdefault(f"{settings} {arm}", []).append(value)
            print(draw, settings, result.frontier and result.frontier.alpha, arms, flush=True)
    for name, values in found.items():
        print(f"{np.mean(values):.4f} (sd {np.std(values, ddof=1):.4f}, n = {len(values)})  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
