"""Test pictures that show a photograph which is also in train, counted without a model.

    python benchmarks/near_duplicates.py FOLDER     with train/CLASS/* and test/CLASS/*

A pair counts where the 64-bit difference hash (of the picture or its mirror image) differs in at most 4
bits and 16 x 16 grey thumbnails correlate above 0.95. Prints the pairs, then the count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

BITS, CORRELATION = 4, 0.95


def looks(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (hash, hash of the mirror image, standardised thumbnail) of a picture."""
    with Image.open(path) as file:
        grey = file.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=float)
    thumb = np.asarray(grey.resize((16, 16), Image.Resampling.BOX), dtype=float)
    thumb = (thumb - thumb.mean()) / (thumb.std() or 1)
    mirrored = small[:, ::-1]
    return (np.diff(small) > 0).ravel(), (np.diff(mirrored) > 0).ravel(), thumb


def main() -> None:
    folder = Path(sys.argv[1])
    train, test = (sorted((folder / s).glob("*/*.*")) for s in ("train", "test"))
    known = [looks(p) for p in train]
    hashes, thumbs = np.array([k[0] for k in known]), np.array([k[2].ravel() for k in known])
    found = 0
    for path in test:
        plain, mirror, thumb = looks(path)
        pairs = []
        for bits, view in ((plain, thumb), (mirror, thumb[:, ::-1])):
            near = np.flatnonzero((hashes != bits).sum(1) <= BITS)
            pairs += [i for i in near if thumbs[i] @ view.ravel() / 256 > CORRELATION]
        for i in pairs:
            print(f"{path.relative_to(folder)}   {train[i].relative_to(folder)}", flush=True)
        found += bool(pairs)
    print(f"{found} of {len(test)} test pictures are near duplicates of one of {len(train)} in train")


if __name__ == "__main__":
    main()
