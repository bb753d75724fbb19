"""A linear probe from the start of a process to test accuracy.

    python benchmarks/probe.py ants_bees weights --out results.jsonl

- regraft: `regraft fit` with only the head trained, no augmentation, an empty feature cache, one epoch
  of the head after the probe (the plan takes no fewer), no walk along the frontier; writes a whole run.
- by_hand: fifteen lines of timm and scikit-learn, C chosen on val.
- hf_default: HF Trainer, backbone frozen (no gradient, eval mode), 10 epochs at its rate of 5e-5.
- hf_tuned: the same at 1e-2, channels-last, two workers.

"without start-up" counts from the end of the imports; of regraft, which imports as it goes, it is what
its result.json says in all. With 5 repeats on two quiet cores: ants_bees 20 min, flowers17 75 min.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import race
from race import Lane, Ratio, since_start

ARCH = "tf_efficientnet_lite0"


def regraft(lane: Lane) -> dict[str, Any]:
    weights = lane.weights
    if weights.is_dir():
        weights = weights / f"{ARCH}.imagenet.safetensors"
    settings = ["augment.random_resized_crop=false", "augment.flip=false", "fit.alpha=1.0", f"source.weights={weights}"]
    command = [
        sys.executable,
        "-m",
        "regraft",
        "fit",
        str(lane.data),
        "--source",
        f"timm:{ARCH}",
        "--freezing",
        "head_only",
        "--epochs",
        "1",
        "--quiet",
        "--out",
        str(lane.out / "run"),
        *(x for s in settings for x in ("--set", s)),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = since_start()
    result = json.loads((lane.out / "run" / "result.json").read_text())
    timing = {f"s_{k}": v for k, v in result["timing"].items()}
    return {
        "seconds": seconds,
        "without start-up": result["timing"]["total"],
        "val": result["val"]["accuracy"]["value"],
        "test": result["test"]["accuracy"]["value"],
        "probe test": result["controls"]["linear probe"]["accuracy"]["value"],
        **timing,
    }


def by_hand(lane: Lane) -> dict[str, Any]:
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weights = lane.weights / f"{ARCH}.imagenet.safetensors" if lane.weights.is_dir() else lane.weights
    imported = since_start()
    model = timm.create_model(ARCH, checkpoint_path=str(weights)).eval()
    model = model.to(memory_format=torch.channels_last)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    parts: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        rows, features = getattr(lane.split, split), []
        for start in range(0, len(rows), 32):
            pictures = [transform(Image.open(f).convert("RGB")) for f, _ in rows[start : start + 32]]
            batch = torch.stack(pictures).to(memory_format=torch.channels_last)
            with torch.inference_mode():
                features.append(model.forward_head(model.forward_features(batch), pre_logits=True))
        parts[split] = torch.cat(features).numpy(), np.array([label for _, label in rows])
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(*parts["train"])
        for c in (1e-4, 1e-3, 1e-2, 1e-1, 1, 10)
    ]
    best = max(fits, key=lambda fit: fit.score(*parts["val"]))
    val, test = best.score(*parts["val"]), best.score(*parts["test"])
    seconds = since_start()
    return {"seconds": seconds, "without start-up": seconds - imported, "val": val, "test": test}


def hf(lane: Lane, *, tuned: bool) -> dict[str, Any]:
    import peers
    from transformers import Trainer  # noqa: F401  (an import that belongs to the start-up)

    imported = since_start()
    rate = {"learning_rate": 1e-2} if tuned else {}
    clock = peers.Clock()
    trainer = peers.hf_pictures(lane, clock, tuned=tuned, frozen=True, num_train_epochs=10, **rate)
    trainer.train()
    test = peers.hf_test(trainer, lane, tuned=tuned)
    seconds = since_start()
    return {"seconds": seconds, "without start-up": seconds - imported, "val": clock.accuracy[-1], "test": test}


PEERS = {
    "regraft": regraft,
    "by_hand": by_hand,
    "hf_default": lambda lane: hf(lane, tuned=False),
    "hf_tuned": lambda lane: hf(lane, tuned=True),
}
RATIOS = [
    Ratio("regraft", ["hf_default"], 8, faster=True),
    Ratio("regraft", ["hf_tuned"], 8, faster=True),
    Ratio("regraft", ["by_hand"], 1.2),
    Ratio("regraft", ["by_hand"], 1.2, figure="without start-up"),
]

if __name__ == "__main__":
    race.run(__doc__, PEERS, RATIOS, figures=("seconds", "without start-up", "val", "test"))
