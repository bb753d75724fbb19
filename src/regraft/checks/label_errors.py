"""Labels that are probably wrong, by what a linear probe says of rows that it never saw.

A suspicion, not a finding: rare but right rows are among them. Confident learning says how many
labels are wrong, and those are named whose own label is the least probable: Northcutt, Jiang and
Chuang 2021, https://arxiv.org/abs/1911.00068, by its authors' cleanlab.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..data.types import Example
from . import CheckContext, Finding, Need
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset({"probabilities"})


@dataclass(frozen=True)
class Suspect:
    split: str
    example: Example
    given: str  # its label
    of_given: float  # the label's probability
    likelier: str
    of_likelier: float


def check(seen: CheckContext) -> Iterator[Finding]:
    if suspects := rank_suspects(seen):
        examples = tuple(
            f"{row_name(s.split, s.example)}: labelled {s.given} ({s.of_given:.2f}), looks like "
            f"{s.likelier} ({s.of_likelier:.2f})"
            for s in suspects
        )
        yield Finding(
            "caution",
            "labels are probably wrong, the most suspicious first",
            len(suspects),
            len(seen.probabilities or ()),
            examples,
            "look at each; mend what is wrong and keep what is merely hard, in test above all: "
            "without its hard rows figures come out too good",
        )


def rank_suspects(seen: CheckContext) -> list[Suspect]:
    """The rows whose label is probably wrong, the surest first, of those that have probabilities."""
    import numpy as np
    from cleanlab.filter import find_label_issues

    assert seen.probabilities is not None
    classes, probabilities = seen.classes, seen.probabilities
    number = {name: i for i, name in enumerate(classes)}
    rows = [(s, e) for s, e in rows_with_split(seen) if e.id in probabilities]
    given = np.array([number[seen.names(e)[0]] for _, e in rows])  # [N]
    said = np.stack([probabilities[e.id] for _, e in rows])  # [N, C]
    # By class and joint, cleanlab's default, finds fewer of flipped labels: see docs/decisions/009.
    worst = find_label_issues(
        given, said, filter_by="low_self_confidence", return_indices_ranked_by="self_confidence", n_jobs=1
    )  # the surest first
    return [
        Suspect(
            split=rows[i][0],
            example=rows[i][1],
            given=classes[given[i]],
            of_given=float(said[i, given[i]]),
            likelier=classes[said[i].argmax()],
            of_likelier=float(said[i].max()),
        )
        for i in worst
    ]
