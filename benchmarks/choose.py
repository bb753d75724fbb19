"""Regret of ``regraft choose``: what its choice loses on test to the best of all sources, each fine-tuned.

    python benchmarks/choose.py regret DATA FOLDER [SET …]   # sets below DATA; default: SETS
    python benchmarks/choose.py ties [DRAWS]                  # how often equally good models are told apart

Sources: the bundled EfficientNets, a random ResNet-10-T, EfficientNet-Lite0 with its early blocks alone (the rest is
drawn anew), and a run from random weights on the few classes of PRETRAINED_ON. A source's worth is the test accuracy
of a default fit, mean over SEEDS. Regret is the best worth less that of the source that was taken: by the probe, by
H-score, by the control order, or by chance (the mean over sources). Fits and sources that are there already are read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from regraft.commands.choose import choose
from regraft.evidence.h_score import h_score
from regraft.evidence.ranking import Entrant, rank
from regraft.evidence.scoring import Predictions
from regraft.metrics import accuracy
from regraft.model.types import SourceOptions
from regraft.pipeline.candidates import Probed, look, read_rows
from regraft.pipeline.run import run
from regraft.plan.read import check
from regraft.runs.result import finished
from regraft.sources import load_source
from regraft.tasks.classification import Classification

SETS = ("ants_bees", "flowers17", "small/fashion-20", "small/cifar10-40", "small/rooms-20")
PRETRAINED_ON = "small/cifar10-40"
SEEDS = 1  # of each fit
EARLY = 3  # stages of blocks that are kept


def plan(data: Path, ref: str, **run_section):
    return check({"data": {"path": str(data)}, "source": {"ref": ref, "offline": True}, "run": run_section})


# ---------------------------------------------------------------- sources


def early_alone(folder: Path) -> str:
    """Write EfficientNet-Lite0 with random weights behind its first EARLY stages; return its reference."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = load_source("bundled:efficientnet-lite0", SourceOptions(offline=True))
        kept = ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(EARLY)))
        torch.manual_seed(0)
        drawn = timm.create_model("tf_efficientnet_lite0").state_dict()
        own = source.backbone.state_dict()
        save_file(
            {n: own[n].contiguous() if n.startswith(kept) else t for n, t in drawn.items()},
            folder / "model.safetensors",
        )
        spec = source.preprocess
        config = {
            "architecture": "tf_efficientnet_lite0",
            "num_classes": 1000,
            "pretrained_cfg": {
                "input_size": [3, *spec.size],
                "mean": list(spec.mean),
                "std": list(spec.std),
                "interpolation": spec.interpolation,
                "crop_pct": 0.875,
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
    return f"timm:local-dir:{folder}"


def few_classes(data: Path, folder: Path) -> str:
    """Train a ResNet-10-T from random weights on a few classes; return the run, which is a source."""
    if not (folder / "result.json").exists():
        run(plan(data, "random:timm/resnet10t", out=str(folder)))
    return str(folder)


# ---------------------------------------------------------------- regret


def worth(data: Path, ref: str, folder: Path) -> float:
    """Return the test accuracy of default fits, mean over seeds."""
    if not (folder / "result.json").exists():
        run(plan(data, ref, out=str(folder), seeds=SEEDS))
    return float(np.mean([seed.test["accuracy"] for seed in finished(folder).seeds]))


def h_score_choice(data: Path, refs: list[str]) -> str:
    """Return the source with the highest H-score."""
    of_rows = plan(data, refs[0])
    rows, _ = read_rows(of_rows)
    scores = {}
    for ref in refs:
        candidate = Probed(ref, ref, offline=True)
        look(of_rows, rows, candidate)
        scores[ref] = h_score(candidate.features.values.numpy(), rows.strata)
    return max(scores, key=scores.__getitem__)


def regret(data: Path, out: Path, sets: tuple[str, ...]) -> None:
    refs = {f"lite{i}": f"bundled:efficientnet-lite{i}" for i in range(3)}
    refs |= {
        "random": "random:timm/resnet10t",
        "early": early_alone(out / "sources" / "early"),
        "few": few_classes(data / PRETRAINED_ON, out / "sources" / "few"),
    }
    names = {ref: name for name, ref in refs.items()}
    every: dict[str, list[float]] = {}
    for place in sets:
        usable = {n: r for n, r in refs.items() if not (n == "few" and place == PRETRAINED_ON)}
        choice = choose(plan(data / place, ""), list(usable.values()))
        slug = place.replace("/", "-")
        worths = {name: worth(data / place, ref, out / slug / name) for name, ref in usable.items()}
        taken = {
            "probe": names[choice.leader],
            "H-score": names[h_score_choice(data / place, list(usable.values()))],
            f"control ({choice.control.order})": names[choice.control.source],
        }
        best = max(worths.values())
        print(f"\n{place}: probe n = {choice.rows}, {sum(c.seconds for c in choice.candidates):.0f} s in all")
        for c in choice.candidates:
            name = names[c.source]
            print(f"  {name:<7} probe {c.value}  {'ties' if c.ties else 'worse':<6} fit on test {worths[name]:.3f}")
        lost = {how: best - worths[name] for how, name in taken.items()}
        lost["chance"] = best - float(np.mean(list(worths.values())))
        for how, value in lost.items():
            every.setdefault(how.partition(" ")[0], []).append(value)
            print(f"  {how:<28} takes {taken.get(how, '-'):<7} regret {value:.3f}", flush=True)
    print(f"\nmean regret over {len(sets)} sets: {', '.join(f'{h} {np.mean(v):.3f}' for h, v in every.items())}")


# ---------------------------------------------------------------- ties


def predictions(right: np.ndarray) -> Predictions:
    scores = np.where(right, 0.9, 0.1)
    ids = tuple(map(str, range(len(right))))
    return Predictions(ids, np.ones(len(right), int), np.stack([1 - scores, scores], 1))


def ties(draws: int) -> None:
    """Print the share of draws in which one of some equally good models is told apart from the leader."""
    task = Classification().make([("0",), ("1",)], ("label",))
    for models in (2, 3, 6, 8):
        for rows in (100, 300, 1000):
            rng, apart = np.random.default_rng(1), 0
            for _ in range(draws):
                easy = rng.uniform(size=rows)
                entrants = [Entrant(str(i), predictions(rng.uniform(size=rows) < easy), 0.0) for i in range(models)]
                apart += any(not r.ties for r in rank(task, accuracy, entrants))
            print(f"{models} models, {rows:>5} rows: {apart / draws:.4f} of {draws} draws", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "ties":
        ties(int(sys.argv[2]) if len(sys.argv) > 2 else 3000)
    else:
        regret(Path(sys.argv[2]), Path(sys.argv[3]), tuple(sys.argv[4:]) or SETS)
