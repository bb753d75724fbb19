"""A batch with the memory that it frees handed back to the system, and kept.

    python benchmarks/kept_memory.py --out results.jsonl

- pictures_usual, pictures_kept: EfficientNet-Lite0, random weights, 32 pictures of 224 px, channels-last.
- texts_usual, texts_kept: MiniLM's size (6 layers of 384), random weights, 16 texts of 24 to 64 tokens, another
  length each step.
- judged_usual, judged_kept: the pictures without gradients and contiguous, as `regraft evaluate` computes them.

Steps with AdamW; float32, regraft.compute.malloc around the kept ones. The median of ten batches after two;
page faults and the system's own time a batch. With 5 repeats on two quiet cores: 9 min.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import race
from race import Lane, Ratio

from regraft.compute.malloc import freed_memory_kept

WARM, STEPS, CLASSES = 2, 10, 17


def measured(lane: Lane, made: Callable[[], Callable[[int], None]], *, kept: bool) -> dict[str, Any]:
    with freed_memory_kept() if kept else nullcontext():
        step, seconds = made(), []
        for i in range(WARM):
            step(i)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for i in range(STEPS):
            began = time.perf_counter()
            step(WARM + i)
            seconds.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds),
        "system seconds": (after.ru_stime - before.ru_stime) / STEPS,
        "page faults": (after.ru_minflt - before.ru_minflt) / STEPS,
    }


def pictures() -> Callable[[int], None]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES).eval()
    model = model.to(memory_format=torch.channels_last)
    batch = torch.randn(32, 3, 224, 224).to(memory_format=torch.channels_last)
    return stepping(model, lambda i: model(batch), 32)


def judged() -> Callable[[int], None]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES).eval()
    batch = torch.randn(32, 3, 224, 224)
    return torch.inference_mode()(lambda i: model(batch))


def texts() -> Callable[[int], None]:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=CLASSES
    )
    model = BertForSequenceClassification(config)

    def logits(i: int) -> torch.Tensor:
        tokens = torch.randint(config.vocab_size, (16, 24 + 8 * (i % 6)))
        return model(input_ids=tokens).logits

    return stepping(model, logits, 16)


def stepping(model: Any, logits: Callable[[int], Any], rows: int) -> Callable[[int], None]:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    labels = torch.arange(rows) % CLASSES

    def step(i: int) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits(i), labels).backward()
        optimizer.step()

    return step


MADE = {"pictures": pictures, "texts": texts, "judged": judged}
PEERS = {
    f"{kind}_{way}": partial(measured, made=made, kept=way == "kept")
    for kind, made in MADE.items()
    for way in ("usual", "kept")
}
RATIOS = [Ratio(f"{kind}_kept", [f"{kind}_usual"], 1.0) for kind in MADE]
RATIOS += [Ratio(f"{kind}_kept", [f"{kind}_usual"], 1.2, figure="peak MB") for kind in MADE]

if __name__ == "__main__":
    race.run(__doc__, PEERS, RATIOS, splits=False, figures=("seconds", "system seconds", "page faults", "peak MB"))
