"""Out-of-distribution distances compared: which one separates inputs that are unlike the training data?

Features come from a run of pictures. Its val gives the threshold and its test the false warnings; other folders of
pictures should get a warning.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

import regraft
from regraft.data.types import Example
from regraft.evidence import ood as novelty
from regraft.model.forward import outputs

MOST = 200  # pictures of another folder


def main(run: Path, data: Path, others: dict[str, Path]) -> None:
    model = regraft.load(run)
    rows = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]

    def features(paths):
        examples = [Example(str(i), (str(p),), (), str(p)) for i, p in enumerate(paths)]
        return outputs(model.model.backbone, model.batches(examples), model.compute).values.numpy()

    of = {s: features([data / r["where"] for r in rows if r["split"] == s]) for s in ("train", "val", "test")}
    classes = np.unique([r["cells"][0] for r in rows if r["split"] == "train"], return_inverse=True)[1]
    for name, folder in others.items():
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        of[name] = features(found[:: max(1, len(found) // MOST)][:MOST])

    def show(name, distances):
        far = {split: distances(values) for split, values in of.items() if split != "train"}
        threshold = np.sort(far["val"])[novelty.threshold_rank(len(far["val"])) - 1]
        line = {"measure": name, "false on test": round(float((far["test"] > threshold).mean()), 3)}
        for other in others:
            truth = np.r_[np.zeros(len(far["test"])), np.ones(len(far[other]))]
            auroc = roc_auc_score(truth, np.r_[far["test"], far[other]])
            line[other] = f"AUROC {auroc:.3f}, warned {(far[other] > threshold).mean():.2f}"
        print(json.dumps(line))

    for what, numbers in (("class means", classes), ("one mean", np.zeros(len(classes), int))):
        for directions in (0, 16, 64):
            novelty.MAX_DIRECTIONS = directions
            found = novelty.fit_novelty(of["train"], numbers, of["val"])
            show(f"{what}, {directions} directions", found.distances)
    bank = novelty.scale_to_unit(of["train"])
    for k in (1, 5, 10):
        show(f"{k} nearest rows", lambda x, k=k: np.sort(2 - 2 * novelty.scale_to_unit(x) @ bank.T, 1)[:, k - 1])
    print(json.dumps({"rows": {k: len(v) for k, v in of.items()}}))


if __name__ == "__main__":
    pairs = [argument.partition("=") for argument in sys.argv[3:]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), {name: Path(folder) for name, _, folder in pairs})
