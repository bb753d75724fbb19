"""Class names that look alike: they differ by case, spaces, the form of a letter or one letter.

regraft does not merge them, because they may be two classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

from . import CheckContext, Finding, Need, findings_on
from ._rows import rows_with_split

NEEDS: frozenset[Need] = frozenset()

MIN_LETTERS = 4  # letters; shorter names may differ by one letter on purpose


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on pairs of class names that look alike."""
    names = sorted({name for _, e in rows_with_split(context) for name in context.names(e)})
    similar = [f"{a!r} and {b!r} ({why})" for a, b, why in find_similar(names)]
    yield from findings_on(
        "caution",
        "pairs of class names look alike",
        similar,
        len(names) * (len(names) - 1) // 2,
        "give them one name if they are one class",
    )


def find_similar(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (name, name, difference) of similar names, without comparing each with each.

    Two names that differ by one letter are equal once a letter is removed from one or both.
    """
    by_form: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_form[normalise(name)].append(name)
    similar = []
    for same in by_form.values():
        similar += [(same[0], b, describe_difference(same[0], b)) for b in same[1:]]
    near: dict[str, set[str]] = defaultdict(set)
    for form in by_form:
        if len(form) >= MIN_LETTERS:
            near[form].add(form)
            for i in range(len(form)):
                near[form[:i] + form[i + 1 :]].add(form)
    pairs = {(a, b) for forms in near.values() for a in forms for b in forms if a < b}
    similar += [(by_form[a][0], by_form[b][0], "one letter") for a, b in pairs if differ_by_letter(a, b)]
    return sorted(similar)


def normalise(name: str) -> str:
    """Return a name without spaces, dashes and case."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def describe_difference(a: str, b: str) -> str:
    """Return how two names differ that are equal in normal form."""
    if unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b):
        return "the same letters in another Unicode form"
    return "case" if a.casefold() == b.casefold() else "spaces, dashes or the form of letters"


def differ_by_letter(a: str, b: str) -> bool:
    """Return whether one letter separates two names. Digits do not count: "class 1" and "class 2" are two classes."""
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
