"""Names of classes that look alike: apart by case, spaces, the form of a letter or one letter alone.

Nothing is merged: they may well be two classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

from . import CheckContext, Finding, Need
from ._rows import rows_with_split

NEEDS: frozenset[Need] = frozenset()

MIN_LETTERS = 4  # letters: shorter names differ by one for good reasons


def check(seen: CheckContext) -> Iterator[Finding]:
    names = sorted({name for _, e in rows_with_split(seen) for name in seen.names(e)})
    found = [f"{a!r} and {b!r} ({why})" for a, b, why in find_similar(names)]
    if found:
        yield Finding(
            "caution",
            "pairs of class names look alike",
            len(found),
            len(names) * (len(names) - 1) // 2,
            tuple(found),
            "give them one name if they are one class",
        )


def find_similar(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Pairs of names with what sets them apart, without comparing each with each: names one letter
    apart share what is left when a letter of one or of both is taken away."""
    plain: dict[str, list[str]] = defaultdict(list)
    for name in names:
        plain[normalise(name)].append(name)
    found = []
    for same in plain.values():
        found += [(same[0], b, describe_difference(same[0], b)) for b in same[1:]]
    near: dict[str, set[str]] = defaultdict(set)
    for form in plain:
        if len(form) >= MIN_LETTERS:
            near[form].add(form)
            for i in range(len(form)):
                near[form[:i] + form[i + 1 :]].add(form)
    pairs = {(a, b) for forms in near.values() for a in forms for b in forms if a < b}
    found += [(plain[a][0], plain[b][0], "one letter") for a, b in pairs if differ_by_letter(a, b)]
    return sorted(found)


def normalise(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def describe_difference(a: str, b: str) -> str:
    if unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b):
        return "the same letters, stored otherwise"
    return "case" if a.casefold() == b.casefold() else "spaces, dashes or the form of letters"


def differ_by_letter(a: str, b: str) -> bool:
    """One letter apart, and the letter no digit: "class 1" and "class 2" are two."""
    if abs(len(a) - len(b)) > 1:
        return False
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    left, right = a[i:], b[i:]
    if len(a) == len(b):
        same, letters = left[1:] == right[1:], left[:1] + right[:1]
    elif len(a) > len(b):
        same, letters = left[1:] == right, left[:1]
    else:
        same, letters = left == right[1:], right[:1]
    return same and letters.isalpha()
