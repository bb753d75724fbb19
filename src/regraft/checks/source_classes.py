"""Target classes that the source's head already has.

A gain on them does not show transfer to new classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on
from ._rows import rows_with_split, sort_names

NEEDS: frozenset[Need] = frozenset({"source names"})


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on classes that target and source share."""
    assert context.source_names is not None
    known: dict[str, str] = {}  # plain form of a synonym → the source's class
    for name in context.source_names:
        for word in name.split(","):
            known.setdefault(plain_name(word), name)
    rows = Counter(name for _, e in rows_with_split(context) for name in context.names(e))
    shared = sort_names(n for n in rows if plain_name(n) and plain_name(n) in known)
    yield from findings_on(
        "caution",
        "classes are also classes of the source",
        [f'{n} ({rows[n]} rows): the source has "{known[plain_name(n)]}"' for n in shared],
        len(rows),
        "do not take a gain on them for a gain on new classes",
    )


def plain_name(name: str) -> str:
    """Return a name without case, punctuation and plural: "Ants" and "ant" are equal."""
    letters = unicodedata.normalize("NFKC", name).casefold()
    words = re.sub(r"[\W_]+", " ", letters).split()
    return "".join(map(singular, words))


def singular(word: str) -> str:
    """Return the singular of an English word by rules on its ending. "glass" and "iris" stay."""
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
