"""Target classes that the source was trained to name.

Transfer has less to show there than on classes that are new to it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

from . import CheckContext, Finding, Need
from ._rows import rows_with_split, sort_names

NEEDS: frozenset[Need] = frozenset({"source names"})


def check(seen: CheckContext) -> Iterator[Finding]:
    assert seen.source_names is not None
    known: dict[str, str] = {}  # plain form of each synonym → the source's class
    for name in seen.source_names:
        for word in name.split(","):
            known.setdefault(plain_name(word), name)
    rows: dict[str, int] = defaultdict(int)
    for _, e in rows_with_split(seen):
        for name in seen.names(e):
            rows[name] += 1
    shared = sort_names(n for n in rows if plain_name(n) and plain_name(n) in known)
    if shared:
        yield Finding(
            "caution",
            "classes are classes of the source too",
            len(shared),
            len(rows),
            tuple(f'{n} ({rows[n]} rows): the source has "{known[plain_name(n)]}"' for n in shared),
            "do not take a gain on them for one on classes that are new to the source",
        )


def plain_name(name: str) -> str:
    """A name without case, marks and plural: "Ants" and "ant" are one."""
    letters = unicodedata.normalize("NFKC", name).casefold()
    words = re.sub(r"[\W_]+", " ", letters).split()
    return "".join(map(singular, words))


def singular(word: str) -> str:
    """English by rule: the ends that a plural has. "glass" and "iris" are none."""
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
