"""Training on a GPU, pictures a second: regraft's second epoch against a step on synthetic data, a loop by
hand and HF Trainer, in float32 and in bfloat16.

    python benchmarks/gpu.py flowers17 weights --out gpu.jsonl

EfficientNet-Lite0, 224 px, batches of 64, AdamW, random crops and flips. "synthetic" is the same step on
one batch that already lies on the device: what the model alone allows; "compiled" is that with
torch.compile. "by_hand": persistent workers that collate uint8 into pinned memory, normalised on the
device. All sides in one process, in turn; a line a side and repeat; the table has medians, ranges and
regraft's ratio to each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from race import Batched
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

ARCH, BATCH, EPOCHS, LR, PX = "tf_efficientnet_lite0", 64, 2, 3e-5, 224
DEVICE = torch.device("cuda")
LAST = torch.channels_last


def network(weights: Path, classes: int) -> Any:
    model = timm.create_model(ARCH, checkpoint_path=str(weights))
    model.reset_classifier(classes)
    return model.to(DEVICE, memory_format=LAST).train()


def step(model: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, half: bool) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        loss = cross_entropy(model(x).float(), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def synthetic(weights: Path, rows: list[Any], half: bool, compiled: bool = False) -> float:
    model = network(weights, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    run = torch.compile(model) if compiled else model
    x = torch.randn(BATCH, 3, PX, PX, device=DEVICE).to(memory_format=LAST)
    y = torch.randint(0, 17, (BATCH,), device=DEVICE)
    for _ in range(5):
        step(run, optimizer, x, y, half)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(30):
        step(run, optimizer, x, y, half)
    torch.cuda.synchronize()
    return 30 * BATCH / (time.perf_counter() - began)


class Pictures(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.vary = v2.Compose(
            [
                v2.RandomResizedCrop(PX, (0.35, 1.0), interpolation=3, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        file, label = self.rows[i]
        with Image.open(file) as picture:
            return self.vary(picture.convert("RGB")), label


def normal(x: torch.Tensor) -> torch.Tensor:
    return x.float().div_(255).sub_(0.5).div_(0.5)


def by_hand(weights: Path, rows: list[Any], half: bool) -> float:
    model = network(weights, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    loader: Any = torch.utils.data.DataLoader(
        Pictures(rows),
        BATCH,
        shuffle=True,
        num_workers=min(8, os.cpu_count() or 1),
        pin_memory=True,
        persistent_workers=True,
    )
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for x, y in loader:
            x = normal(x.to(DEVICE, non_blocking=True)).to(memory_format=LAST)
            step(model, optimizer, x, y.to(DEVICE, non_blocking=True), half)
        torch.cuda.synchronize()
    return len(rows) / (time.perf_counter() - began)


def hf_trainer(weights: Path, rows: list[Any], half: bool) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(weights, 17)

        def forward(self, pixels: Any, labels: Any) -> Any:
            logits = self.net(normal(pixels).to(memory_format=LAST))
            return {"loss": cross_entropy(logits.float(), labels), "logits": logits}

    def collate(samples: list[Any]) -> Any:
        return {"pixels": torch.stack([x for x, _ in samples]), "labels": torch.tensor([y for _, y in samples])}

    seconds: list[float] = []

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            self.at = time.perf_counter()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.at)

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            bf16=half,
            learning_rate=LR,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=min(8, os.cpu_count() or 1),
            dataloader_persistent_workers=True,
            remove_unused_columns=False,
        )
        Trainer(
            model=Net(), args=arguments, train_dataset=Pictures(rows), data_collator=collate, callbacks=[Stamps()]
        ).train()
    return len(rows) / seconds[-1]


def regraft(weights: Path, rows: list[Any], half: bool, data: Path) -> float:
    from regraft.pipeline.run import RunOptions, run
    from regraft.plan.read import read_plan

    clock = Batched()
    with tempfile.TemporaryDirectory() as out:
        plan = read_plan(
            None,
            {
                "data.path": str(data),
                "source.ref": f"timm:{ARCH}",
                "source.weights": str(weights),
                "run.out": f"{out}/run",
                "run.cache": f"{out}/cache",
                "fit.batch_size": BATCH,
                "fit.epochs": EPOCHS,
                "fit.alpha": 1.0,
                "fit.lr": LR,
                "run.precision": "bfloat16" if half else "float32",
                "run.device": "cuda",
            },
        )

        run(plan, RunOptions(track=clock))
    return clock.rows / EPOCHS / clock.train[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = args.weights
    weights = weights / f"{ARCH}.imagenet.safetensors" if weights.is_dir() else weights
    folders = sorted(p for p in (args.data / "train").iterdir() if p.is_dir())
    rows = [(str(f), c) for c, folder in enumerate(folders) for f in sorted(folder.iterdir())]
    sides: dict[str, Callable[[bool], float]] = {
        "regraft": lambda half: regraft(weights, rows, half, args.data),
        "synthetic": lambda half: synthetic(weights, rows, half),
        "compiled": lambda half: synthetic(weights, rows, half, compiled=True),
        "by_hand": lambda half: by_hand(weights, rows, half),
        "hf_trainer": lambda half: hf_trainer(weights, rows, half),
    }
    found: dict[str, list[float]] = {}
    for repeat in range(args.repeats):
        for half in (False, True):
            for name, side in sides.items():
                key = f"{name} {'bf16' if half else 'float32'}"
                try:
                    found.setdefault(key, []).append(side(half))
                except Exception as error:  # one side that does not run is no reason to lose the rest
                    print(f"{key}: {type(error).__name__}: {error}", flush=True)
                    continue
                line = {
                    "side": key,
                    "repeat": repeat,
                    "pictures a second": found[key][-1],
                    "device": torch.cuda.get_device_name(),
                    "cores": os.cpu_count(),
                    "torch": torch.__version__,
                }
                print(f"{repeat} {key}: {found[key][-1]:.0f} pictures a second", flush=True)
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
    for key, values in found.items():
        if not values:
            continue
        mine = found[f"regraft {key.split()[1]}"]
        ratios = [a / b for a, b in zip(mine, values, strict=False)]
        print(
            f"{key:20} {statistics.median(values):7.0f} [{min(values):.0f}, {max(values):.0f}]  "
            f"regraft ÷ it {statistics.median(ratios):.2f}  n = {len(values)}"
        )


if __name__ == "__main__":
    main()
