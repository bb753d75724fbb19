"""Peak anonymous memory and time against the number of rows, and time against the number of processes.

    python benchmarks/rows.py --out results.jsonl

- pictures_1000, _2000, _4000: `regraft fit` on generated pictures of 64 px with only the head trained:
  reading, hashing, a pass of EfficientNet-Lite0 at 64 px, the probe, and evaluation on the 20 % that
  are set aside as test. The whole process.
- features_1000 … _100000: generated features [1280] through regraft.data.store: written, mapped, read
  back in batches of 256, and a linear probe of ten classes fitted on them. Needs 0.6 GB of disk.
- table_1000, _100000: a table of texts read, identified and split, and its manifest written.
- batches_1, batches_2: two epochs of all blocks on 1,000 of the pictures, by one process and by two that share
  each batch; seeds_1, seeds_2: the same with two seeds, by one process and by two that take one each. Seconds
  of the fit alone, from result.json.

Anonymous memory is RssAnon of all processes of a measurement together; mapped files are the kernel's. A
child that only starts another counts about 10 MB. With 5 repeats on two quiet cores: 30 min.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import race
from race import Lane, Ratio, since_start

from regraft.compute.malloc import freed_memory_kept

PICTURES, TABLES = (1000, 2000, 4000), (1000, 100_000)
FEATURES = (1000, 2000, 4000, 10_000, 30_000, 100_000)
WIDTH, SIDE, CLASSES = 1280, 64, 10


def write_pictures(shared: Path) -> None:
    """Write pictures of one colour a class under noise, so that a probe can separate them."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    colours = rng.uniform(60, 200, (CLASSES, 3))
    for count in PICTURES:
        for i in range(count):
            folder = shared / f"{count}" / f"class {i % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = rng.normal(colours[i % CLASSES], 60, (SIDE, SIDE, 3))
            picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
            picture.save(folder / f"{i}.jpg", quality=90)


def fit(lane: Lane, count: int, *more: str) -> None:
    settings = ["augment.random_resized_crop=false", "augment.flip=false", "fit.alpha=1.0", f"source.image_size={SIDE}"]
    command = [
        sys.executable,
        "-m",
        "regraft",
        "fit",
        str(lane.shared / f"{count}"),
        "--source",
        "bundled:efficientnet-lite0",
        "--quiet",
        "--out",
        str(lane.out / "run"),
        *more,
        *(x for s in settings for x in ("--set", s)),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def pictures(lane: Lane, count: int) -> dict[str, Any]:
    fit(lane, count, "--freezing", "head_only", "--epochs", "1")
    return {"rows": count, "seconds": since_start()}


def processes(lane: Lane, count: int, *more: str) -> dict[str, Any]:
    fit(lane, PICTURES[0], "--epochs", "2", "--nproc", str(count), *more)
    result = json.loads((lane.out / "run" / "result.json").read_text())
    return {"rows": PICTURES[0], "seconds": result["timing"]["fit"]}


@freed_memory_kept()  # as in a run
def features(lane: Lane, count: int) -> dict[str, Any]:
    import time

    import torch

    from regraft.data.store import FeatureCache
    from regraft.evidence.linear_probe import fit_probe
    from regraft.model.forward import Outputs
    from regraft.tasks.classification import Classification

    generator = torch.Generator().manual_seed(0)
    parts = [range(i, min(i + 256, count)) for i in range(0, count, 256)]

    def made() -> Any:
        for part in parts:
            yield names(part), torch.randn(len(part), WIDTH, generator=generator)

    began = time.perf_counter()
    entry = FeatureCache(lane.out / "cache", limit=10**10).write("0" * 64, made())
    written = time.perf_counter()
    total = sum(float(entry.batch(names(part)).sum()) for part in parts)  # type: ignore[union-attr]
    read = time.perf_counter() - written
    assert abs(total) < 10 * (count * WIDTH) ** 0.5  # ten standard deviations of the sum
    ids = tuple(names(range(count)))
    values = entry.rows(ids)
    assert isinstance(values, torch.Tensor)
    targets = torch.cat([values[i : i + 4096, :CLASSES].argmax(1) for i in range(0, count, 4096)])
    task = Classification().make([(f"{c}",) for c in range(CLASSES)], ("label",))
    rows = Outputs(ids, values, targets)
    fit_probe(rows, task, [0.1], val=rows)
    probe = time.perf_counter() - written - read
    return {
        "rows": count,
        "seconds": written - began + read + probe,
        "write": written - began,
        "read": read,
        "probe": probe,
    }


def table(lane: Lane, count: int) -> dict[str, Any]:
    import csv
    import time

    from regraft.data.loading import load_data
    from regraft.data.splitting import write_manifest
    from regraft.plan.read import read_plan

    path = lane.out / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        words = "some more words until it is about as long as what people write"
        writer.writerows([f"text {i} and {words}", "abcd"[i % 4]] for i in range(count))
    plan = read_plan(None, {"data.path": str(path), "source.ref": "none"})
    options = plan.plugins.task
    began = time.perf_counter()
    splits, _ = load_data(plan.data, options.make, options.strata)
    write_manifest(splits, lane.out / "manifest.jsonl")
    return {"rows": count, "seconds": time.perf_counter() - began}


def names(part: range) -> list[str]:
    return [f"{i:016x}-0" for i in part]


PEERS = {f"pictures_{n}": partial(pictures, count=n) for n in PICTURES}
PEERS |= {f"features_{n}": partial(features, count=n) for n in FEATURES}
PEERS |= {f"table_{n}": partial(table, count=n) for n in TABLES}
PEERS |= {f"batches_{n}": lambda lane, n=n: processes(lane, n) for n in (1, 2)}
SEEDS = ("--seeds", "2", "--set", "run.spread=arms")
PEERS |= {f"seeds_{n}": lambda lane, n=n: processes(lane, n, *SEEDS) for n in (1, 2)}
RATIOS = [
    Ratio("pictures_2000", ["pictures_1000"], 2),
    Ratio("pictures_4000", ["pictures_1000"], 4),
    Ratio("pictures_4000", ["pictures_1000"], 1.1, figure="peak MB"),
    Ratio("features_100000", ["features_1000"], 110),
    Ratio("features_100000", ["features_1000"], 1.4, figure="peak MB"),
    Ratio("batches_2", ["batches_1"], 1.0),
    Ratio("seeds_2", ["seeds_1"], 1.0),
]

if __name__ == "__main__":
    race.run(
        __doc__,
        PEERS,
        RATIOS,
        splits=False,
        setup=write_pictures,
        figures=("seconds", "peak MB", "write", "read", "probe"),
    )
