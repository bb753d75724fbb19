"""Labels that are probably wrong, named after a fit and kept for its report.

The cross-validated linear probe of ``regraft check`` judges every row, test too, when everything else
is done: by models that are thrown away, so that no choice and no figure of the run depends on it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..checks.label_errors import rank_suspects
from ..compute import distributed
from ..data.columns import cells_of, concatenated, groups_of, ids_of, some_of
from ..data.types import content_of
from ..evidence.linear_probe import fit_probe, folds_of
from ..model.forward import joined
from .arms import features_of_source, source_features
from .findings import seen_of
from .gallery import COUNT, shown

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray
    from ..evidence.linear_probe import Probe
    from ..model.forward import Outputs
    from ..runs.folder import RunFolder
    from .prepare import Prepared


FOLDS = 5

MOST = 20_000  # rows whose features are copied for it


def out_of_fold(p: Prepared, every: Outputs, strength: float) -> dict[str, FloatArray] | None:
    """Row → probabilities [C] by a linear probe that saw neither it, nor its group, nor equal content.

    The folds are over all rows, so that test is judged too: for its labels, by models that are thrown
    away. None where a class has a single row or all rows are one group. A row whose class has no
    other row, group or content to learn it from is not judged: its own label could only look wrong.
    """
    examples = concatenated([p.splits.train, p.splits.val, p.splits.test])
    place = {id_: i for i, id_ in enumerate(ids_of(examples))}
    rows = some_of(examples, [place[id_] for id_ in every.ids])
    contents = list(map(content_of, every.ids))
    copies = Counter(contents)
    groups = [
        group or (name if copies[name] > 1 else None) for name, group in zip(contents, groups_of(rows), strict=True)
    ]
    classes = [";".join(cells) for cells in cells_of(rows)]
    folds = folds_of(classes, groups, FOLDS)
    if not folds:
        return None
    found: dict[str, FloatArray] = {}
    for fit, judge in folds:
        probe = fit_probe(every.take(fit), p.task, [strength])
        learnt = {classes[i] for i in fit}
        judged = every.take([i for i in judge if classes[i] in learnt])
        if not judged.ids:
            continue
        scores = p.task.scores(probe.logits(judged.values)).numpy()
        found |= dict(zip(judged.ids, scores, strict=True))
    return found


def write_suspects(folder: RunFolder, p: Prepared, probe: Probe | None) -> None:
    """gallery/suspects.json: why nobody looked, or how many of how many rows, and the surest COUNT."""
    record: dict[str, Any] = {"why not": why_not(p, probe), "of": 0, "count": 0, "rows": []}
    every = None
    if not record["why not"]:  # each process has a part in these
        every = joined([*features_of_source(p).values(), source_features(p, "test")])
    if not distributed.is_rank0():
        return
    if every is not None and probe is not None:
        try:
            record |= found_by(folder, p, every, probe.strength)
        except Exception as error:  # all else is done and must not be lost by it
            record["why not"] = f"They could not be judged ({type(error).__name__}: {error})."
            folder.log(f"suspected label errors: {record['why not']}")
    folder.json("gallery/suspects.json", record)


def found_by(folder: RunFolder, p: Prepared, every: Outputs, strength: float) -> dict[str, Any]:
    said = out_of_fold(p, every, strength)
    if not said:
        why = "A class has a single row, or all rows are one group: no other can judge them."
        return {"why not": why}
    seen = replace(seen_of(p.splits, p.task), probabilities=said, classes=p.task.classes)
    suspects = rank_suspects(seen)
    rows = [
        {
            "split": s.split,
            "truth": s.given,
            "probability of truth": s.of_given,
            "predicted": s.likelier,
            "probability": s.of_likelier,
            **shown(folder, s.example, p.splits.kind, f"suspect-{i}.jpg"),
        }
        for i, s in enumerate(suspects[:COUNT])
    ]
    return {"of": len(said), "count": len(suspects), "rows": rows}


def why_not(p: Prepared, probe: Probe | None) -> str:
    if not p.task.has_classes:
        return f"Only labels of a classification task are judged, and this is {p.task.name}."
    if probe is None:
        return "They are found by the source's features, and random weights have none."
    if (count := sum(len(labels) for labels in p.targets.values())) > MOST:
        return (
            f"{count:,} rows are more than the {MOST:,} that a fit looks at: `regraft check` with --source names them."
        )
    return ""
