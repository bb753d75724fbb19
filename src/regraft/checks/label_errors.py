"""Labels that are probably wrong, according to a linear probe that was fitted without their rows.

Suspects include rare rows with right labels. Confident learning estimates how many labels are wrong; the
check names that many rows, those with the least probable labels. Northcutt, Jiang and Chuang 2021,
https://arxiv.org/abs/1911.00068, in the authors' implementation, cleanlab.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..data.types import Example
from . import CheckContext, Finding, Need, findings_on
from ._rows import row_name, rows_with_split

NEEDS: frozenset[Need] = frozenset({"probabilities"})


@dataclass(frozen=True)
class Suspect:
    """A row whose label is probably wrong, with the probe's probabilities."""

    split: str
    example: Example
    given: str  # the row's label
    of_given: float  # probability of the label
    likelier: str  # the most probable class
    of_likelier: float  # probability of that class


def check(context: CheckContext) -> Iterator[Finding]:
    """Yield a finding on suspicious labels, the most suspicious first."""
    examples = [
        f"{row_name(s.split, s.example)}: labelled {s.given} ({s.of_given:.2f}), looks like "
        f"{s.likelier} ({s.of_likelier:.2f})"
        for s in rank_suspects(context)
    ]
    yield from findings_on(
        "caution",
        "labels are probably wrong, the most suspicious first",
        examples,
        len(context.probabilities or ()),
        "look at each; correct wrong labels and keep rows that are merely hard, above all in test: "
        "without its hard rows figures are too good",
    )


def rank_suspects(context: CheckContext) -> list[Suspect]:
    """Return rows whose label is probably wrong, the most suspicious first. Rows without probabilities do not count."""
    import numpy as np
    from cleanlab.filter import find_label_issues

    assert context.probabilities is not None
    classes, probabilities = context.classes, context.probabilities
    number = {name: i for i, name in enumerate(classes)}
    rows = [(s, e) for s, e in rows_with_split(context) if e.id in probabilities]
    given = np.array([number[context.names(e)[0]] for _, e in rows])  # [N]
    scores = np.stack([probabilities[e.id] for _, e in rows])  # [N, C]
    # cleanlab's default filter finds fewer flipped labels, see docs/decisions/009.
    issues = find_label_issues(
        given, scores, filter_by="low_self_confidence", return_indices_ranked_by="self_confidence", n_jobs=1
    )  # the surest first
    return [
        Suspect(
            split=rows[i][0],
            example=rows[i][1],
            given=classes[given[i]],
            of_given=float(scores[i, given[i]]),
            likelier=classes[scores[i].argmax()],
            of_likelier=float(scores[i].max()),
        )
        for i in issues
    ]
