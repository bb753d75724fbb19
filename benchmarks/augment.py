"""Milliseconds a training picture takes before it travels: decoding, and crop and flip by Pillow and on tensors.

    python benchmarks/augment.py FLOWERS17/train

60 pictures, 224 px, bicubic with antialiasing, crops of 0.5 to 1 of the area, one thread; all ways take turns
in 7 rounds: medians with their range, and the median of the rounds' ratios to Pillow's crop and flip. "randaugment"
is two operations at magnitude 9 on a picture of 224 px.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor

from regraft.data.images import read_picture

ROUNDS, COUNT, SIDE = 7, 60, [224, 224]


def main() -> None:
    torch.set_num_threads(1)
    files = sorted(Path(sys.argv[1]).glob("*/*.jpg"))
    files = files[:: max(1, len(files) // COUNT)][:COUNT]
    pictures = [read_picture(f) for f in files]
    pixels = [np.array(p) for p in pictures]
    small = [p.resize((224, 224)) for p in pictures]
    small_tensors = [pil_to_tensor(p) for p in small]
    bicubic = InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(SIDE, (0.5, 1.0), (0.75, 4 / 3), bicubic, antialias=True)
    both = v2.Compose([crop, v2.RandomHorizontalFlip()])
    varied = v2.RandAugment(2, 9)
    ways: dict[str, Callable[[int], Any]] = {
        "crop and flip, Pillow": lambda i: pil_to_tensor(both(pictures[i])),
        "crop and flip, tensor": lambda i: both(torch.from_numpy(pixels[i]).permute(2, 0, 1)),
        "decode": lambda i: read_picture(files[i]),
        "pixels to Pillow": lambda i: Image.fromarray(pixels[i]),
        "randaugment, Pillow": lambda i: varied(small[i]),
        "randaugment, tensor": lambda i: varied(small_tensors[i]),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS):
        for name, way in ways.items():
            torch.manual_seed(round_)
            began = time.perf_counter()
            for i in range(len(files)):
                way(i)
            found[name].append(1e3 * (time.perf_counter() - began) / len(files))
    first = next(iter(found.values()))
    for name, ms in found.items():
        ratio = statistics.median(a / b for a, b in zip(ms, first, strict=True))
        print(f"{name:22} {statistics.median(ms):5.2f} [{min(ms):.2f}, {max(ms):.2f}]   {ratio:.2f}")


if __name__ == "__main__":
    main()
