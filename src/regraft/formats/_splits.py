"""Names of splits as people write them: "Train", "test_set", "validation", "train-00000-of-00001"."""

from __future__ import annotations

import re

NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
FILLERS = frozenset(
    {"set", "data", "dataset", "split", "seg", "of", "part", "shard",
     "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"}
)  # fmt: skip


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" for a name that says one of them and nothing else."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [w.removesuffix("set") or w for w in words]
    words = [w for w in words if w not in FILLERS and w != ""]
    return NAMES.get(words[0]) if len(words) == 1 else None
