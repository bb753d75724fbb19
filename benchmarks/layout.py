"""Training step of EfficientNet-Lite0 (32 pictures of 224 px, float32): contiguous ÷ channels-last.

Both sides in one run, interleaved; prints the median ratio with its range and n.
"""

from __future__ import annotations

import statistics
import time

import timm
import torch

PAIRS, BATCH = 7, 32


def step(model: torch.nn.Module, x: torch.Tensor) -> float:
    begin = time.perf_counter()
    model(x).square().mean().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - begin


def main() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False).train()
    last = timm.create_model("tf_efficientnet_lite0", pretrained=False).train()
    last = last.to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, 3, 224, 224)
    y = x.to(memory_format=torch.channels_last)
    step(plain, x), step(last, y)
    pairs = [(step(plain, x), step(last, y)) for _ in range(PAIRS)]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (1e3 * statistics.median(side) / BATCH for side in zip(*pairs, strict=True))
    print(
        f"contiguous {a:.0f} ms, channels-last {b:.0f} ms a picture; ratio {statistics.median(ratios):.2f} "
        f"[{ratios[0]:.2f}, {ratios[-1]:.2f}], n = {PAIRS} pairs of steps, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
