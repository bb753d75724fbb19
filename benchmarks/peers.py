"""Peers of the picture benchmarks share the source, the pictures, the metric and three trainers.

All take EfficientNet-Lite0 from the same file, 224 px, the same crops and flips by torchvision, batches
of 32, AdamW, and accuracy on the same val rows after each epoch. What differs is said where it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from race import Lane
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

ARCH, SIDE, BATCH = "tf_efficientnet_lite0", 224, 32
BICUBIC = InterpolationMode.BICUBIC
PLAIN = [v2.Resize(256, BICUBIC, antialias=True), v2.CenterCrop(SIDE)]
VARIED = [v2.RandomResizedCrop(SIDE, (0.5, 1.0), (0.75, 4 / 3), BICUBIC, antialias=True), v2.RandomHorizontalFlip()]
NORMAL = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]

Rows = Sequence[tuple[str, int]]
Tell = Callable[[float], None]  # val accuracy after an epoch


def weights_file(weights: Path) -> Path:
    return weights / f"{ARCH}.imagenet.safetensors" if weights.is_dir() else weights


def network(lane: Lane) -> nn.Module:
    """Return the source with a fresh head for the classes, drawn at the lane's seed."""
    torch.manual_seed(lane.seed)
    model = timm.create_model(ARCH, num_classes=len(lane.split.classes))
    tensors = load_file(weights_file(lane.weights))
    kept = {n: t for n, t in tensors.items() if not n.startswith("classifier.")}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert set(missing) == {"classifier.weight", "classifier.bias"} and not unexpected
    return model


class Pictures(Dataset[Any]):
    """A data set of (picture [3, H, W], class).

    Pictures are uint8 to be normalised as a batch, or float and normalised one by one, as in tutorials. ``named``
    gives the dictionaries that HF Trainer wants.
    """

    def __init__(self, rows: Rows, *, train: bool, each: bool = False, named: bool = False) -> None:
        self.rows, self.named = rows, named
        self.steps = v2.Compose([*(VARIED if train else PLAIN), v2.PILToTensor(), *(NORMAL if each else [])])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        path, label = self.rows[i]
        with Image.open(path) as file:
            picture = self.steps(file.convert("RGB"))
        return {"pixel_values": picture, "labels": label} if self.named else (picture, label)


def normal(pictures: Tensor) -> Tensor:
    """Turn uint8 [B, 3, H, W] into float32 in [-1, 1], channels-last."""
    x = pictures.to(memory_format=torch.channels_last)
    return x.float().div_(127.5).sub_(1)


def loader(rows: Rows, *, train: bool, workers: int, each: bool = False) -> DataLoader[Any]:
    return DataLoader(
        Pictures(rows, train=train, each=each),
        batch_size=BATCH,
        shuffle=train,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def correct(logits: Any, labels: Any) -> float:
    return float((logits.argmax(-1) == labels).mean())


# ---------------------------------------------------------------- by hand


def by_hand(
    lane: Lane, *, epochs: int, lr: float, workers: int, bf16: bool = False
) -> Iterator[tuple[float, float, float]]:
    """Run the fastest loop that we can write.

    It is channels-last, with fused AdamW, normalisation of batches, and batch norms on the source's statistics, which
    is slightly faster and what regraft does.
    """
    model = network(lane).to(memory_format=torch.channels_last)
    train = loader(lane.split.train, train=True, workers=workers)
    val = loader(lane.split.val, train=False, workers=workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * len(train), pct_start=0.1, cycle_momentum=False
    )
    cast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        for norm in norms:
            norm.eval()
        for pictures, labels in train:
            with cast:
                loss = cross_entropy(model(normal(pictures)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        trained = time.perf_counter()
        accuracy = judged(model, val, cast)
        yield accuracy, trained - began, time.perf_counter() - trained


def judged(model: nn.Module, rows: DataLoader[Any], cast: Any) -> float:
    model.eval()
    right = total = 0
    with torch.inference_mode(), cast:
        for pictures, labels in rows:
            right += int((model(normal(pictures)).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


# ---------------------------------------------------------------- HF Trainer


class ForTrainer(nn.Module):
    """A timm model as Trainer wants it. ``frozen``: the backbone without gradient and in eval mode,
    statistics of batch norms included, which ``requires_grad = False`` alone would let move."""

    def __init__(self, net: nn.Module, *, frozen: bool = False) -> None:
        super().__init__()
        self.net, self.frozen = net, frozen
        if frozen:
            net.requires_grad_(False)
            net.get_classifier().requires_grad_(True)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if pixel_values.dtype == torch.uint8:
            pixel_values = normal(pixel_values)
        logits = self.net(pixel_values)
        found = {"logits": logits}
        return found if labels is None else {"loss": cross_entropy(logits.float(), labels), **found}

    def train(self, mode: bool = True) -> ForTrainer:
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self


class Clock:
    """Seconds of each epoch's training and evaluation, and val accuracy, as Trainer goes along."""

    def __init__(self, tell: Tell | None = None) -> None:
        self.tell, self.train, self.val, self.accuracy = tell, [], [], []  # type: ignore[var-annotated]
        self.at = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Stamps(TrainerCallback):
            def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
                clock.at = time.perf_counter()

            def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
                now = time.perf_counter()
                clock.train.append(now - clock.at)
                clock.at = now

            def on_evaluate(self, *args: Any, metrics: dict[str, float], **kwargs: Any) -> None:
                clock.val.append(time.perf_counter() - clock.at)
                clock.accuracy.append(metrics["eval_accuracy"])
                if clock.tell:
                    clock.tell(metrics["eval_accuracy"])

        return Stamps()


def hf_trainer(
    model: nn.Module, train: Any, val: Any, lane: Lane, clock: Clock, collator: Any = None, **settings: Any
) -> Any:
    """Run HF Trainer with its defaults but for ``settings``. It writes, logs and shows nothing."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(lane.out),
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=lane.seed,
        **settings,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=val,
        data_collator=collator,
        callbacks=[clock.callback()],
        compute_metrics=lambda p: {"accuracy": correct(p.predictions, p.label_ids)},
    )


def hf_pictures(lane: Lane, clock: Clock, *, tuned: bool, frozen: bool = False, **settings: Any) -> Any:
    """Run HF Trainer on the pictures in batches of 32.

    Not tuned: float32, contiguous, no workers, pictures normalised one by one. Tuned: two persistent workers,
    channels-last, normalised as a batch.
    """
    net = network(lane)
    if tuned:
        net = net.to(memory_format=torch.channels_last)
        settings = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, **settings}
    plain = {"each": not tuned, "named": True}
    train = Pictures(lane.split.train, train=not frozen, **plain)
    val = Pictures(lane.split.val, train=False, **plain)
    sizes = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH}
    return hf_trainer(ForTrainer(net, frozen=frozen), train, val, lane, clock, **sizes, **settings)


def hf_test(trainer: Any, lane: Lane, *, tuned: bool) -> float:
    rows = Pictures(lane.split.test, train=False, each=not tuned, named=True)
    return float(trainer.predict(rows).metrics["test_accuracy"])
