"""Groups (patients, places) with rows in several splits: a model may recognise them."""

from __future__ import annotations

from collections.abc import Iterator

from . import CheckContext, Finding, Need, findings_on
from ._rows import SPLIT_PAIRS, sort_names

NEEDS: frozenset[Need] = frozenset()


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding for each two splits that share groups."""
    groups = {s: {e.group for e in rows if e.group} for s, rows in context.splits.items()}
    for later, earlier in SPLIT_PAIRS:
        late, early = groups.get(later, set()), groups.get(earlier, set())
        yield from findings_on(
            "problem",
            f"groups of {later} are also in {earlier}",
            sort_names(late & early),
            len(late),
            "put each group in one split, or give no splits: regraft draws them with whole groups",
        )
