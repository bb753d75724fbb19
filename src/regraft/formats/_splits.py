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
    {
        "set",
        "data",
        "dataset",
        "split",
        "seg",
        "of",
        "part",
        "shard",
        "image",
        "images",
        "img",
        "imgs",
        "picture",
        "pictures",
        "photo",
        "photos",
    }
)


# Words, or their beginnings, that may mean a split but may mean something else.
HINTS = re.compile(r"(tr[ai]*n|test|tst|val|eval|dev|hold).*|tr|te|ts|va")


def looks_like_split(name: str) -> bool:
    """Return whether a word of a name looks like a split's, as in "X_train", "tst" or "holdout"."""
    return any(HINTS.fullmatch(word) for word in _words(name))


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" for a name that means one of them and nothing else, or None."""
    words = [w.removesuffix("set") or w for w in _words(name)]
    words = [w for w in words if w not in FILLERS and w != ""]
    return NAMES.get(words[0]) if len(words) == 1 else None


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case. "trainSet" has two."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
