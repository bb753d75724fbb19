"""Labels that are probably wrong, by what a linear probe says of rows that it never saw.

A suspicion, not a finding: rare but right rows are among them. Confident learning says how many
labels are wrong, and those are named whose own label is the least probable: Northcutt, Jiang and
Chuang 2021, https://arxiv.org/abs/1911.00068, by its authors' cleanlab.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..types import Finding, Need, Seen
from ._rows import located, place

NEEDS: frozenset[Need] = frozenset({"probabilities"})


def check(seen: Seen) -> Iterator[Finding]:
    import numpy as np
    from cleanlab.filter import find_label_issues

    assert seen.probabilities is not None
    number = {name: i for i, name in enumerate(seen.classes)}
    rows = [(s, e) for s, e in located(seen) if e.id in seen.probabilities]
    given = np.array([number[seen.names(e)[0]] for _, e in rows])  # [N]
    said = np.stack([seen.probabilities[e.id] for _, e in rows])  # [N, C]
    # By class and joint, cleanlab's default, finds fewer of flipped labels: see docs/decisions/009.
    worst = find_label_issues(
        given,
        said,
        filter_by="low_self_confidence",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )  # the surest first
    if len(worst):
        examples = tuple(
            f"{place(*rows[i])}: labelled {seen.classes[given[i]]} ({said[i, given[i]]:.2f}), looks like "
            f"{seen.classes[said[i].argmax()]} ({said[i].max():.2f})"
            for i in worst
        )
        yield Finding("caution", "labels are probably wrong, the most suspicious first", len(worst),
                      len(rows), examples,
                      "look at each; mend what is wrong and keep what is merely hard, in test above all: "
                      "without its hard rows figures come out too good")  # fmt: skip
