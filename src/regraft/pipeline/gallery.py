"""The gallery of a run: its worst errors on test, and labels that are probably wrong, kept with the run so that
its report needs neither data nor model.

The task ranks errors (``Task.wrongness``). Thumbnails are drawn anew, so nothing of a file but its pixels is in
them. Labels are judged by the cross-validated linear probe of ``regraft check``, test's too, when everything
else is done: by models that are thrown away, so that no choice and no figure of the run depends on it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks.label_errors import rank_suspects
from ..compute import distributed
from ..data.columns import cells_of, concatenated, groups_of, ids_of, some_of
from ..data.types import content_of
from ..evidence.linear_probe import fit_probe, folds_of
from ..model.forward import joined
from .findings import seen_of

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray, Kind
    from ..data.types import Example, Splits
    from ..evidence.linear_probe import Probe
    from ..evidence.scoring import Predictions
    from ..model.forward import Outputs
    from ..runs.folder import RunFolder
    from ..tasks import Task
    from .job import ModelOutputs
    from .target_data import TargetData


COUNT, SIDE, LETTERS = 24, 128, 300  # errors, pixels of a thumbnail, letters of a text

FOLDS = 5

MOST = 20_000  # rows whose features are copied to look for label errors


def write_gallery(folder: RunFolder, task: Task, splits: Splits, rows: Predictions) -> None:
    """Write gallery/gallery.json, an entry an error, and a thumbnail each if the inputs are pictures.

    ``rows`` are the saved model's on test, in the order of ``splits.test``.
    """
    worst = task.wrongness(rows.truth, rows.scores)
    order = np.argsort(-worst, kind="stable")[:COUNT]
    entries: list[dict[str, Any]] = []
    for i in (int(i) for i in order if worst[i] > 0):
        entries.append(
            {
                "truth": ";".join(splits.test[i].cells),
                "predicted": task.label(rows.scores[i]),
                "probability": float(rows.scores[i].max()) if task.has_classes else None,
                **shown(folder, splits.test[i], splits.kind, f"{len(entries)}.jpg"),
            }
        )
    folder.json("gallery/gallery.json", entries)


def shown(folder: RunFolder, example: Example, kind: Kind, name: str) -> dict[str, Any]:
    """Return a row's part of an entry, and write a picture's thumbnail to gallery/``name``."""
    picture = kind == "image"
    if picture:
        thumbnail(example.inputs[0], folder.path / "gallery" / name)
    return {
        "id": example.id,
        "where": example.where,
        "picture": name if picture else None,
        "text": None if picture else " ⏎ ".join(t[:LETTERS] for t in example.inputs),
    }


def thumbnail(file: str, to: Any) -> None:
    """Write a picture within SIDE × SIDE pixels, as JPEG without anything else that came with the file."""
    from PIL import Image

    from ..data.images import read_picture

    to.parent.mkdir(exist_ok=True)
    image = read_picture(file)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    clean.save(to, "JPEG", quality=80)


# ---------------------------------------------------------------- labels that are probably wrong


def out_of_fold(data: TargetData, every: Outputs, strength: float) -> dict[str, FloatArray] | None:
    """Return probabilities [C] by row, of a linear probe that saw neither the row, nor its group, nor its content.

    The folds are over all rows, test's too: their models are thrown away, so that no figure depends on them. Return
    None if a class has a single row, or all rows are one group. A row is left out if its class has no other row,
    group or content to learn from: its own label could only look wrong.
    """
    examples = concatenated([data.splits.train, data.splits.val, data.splits.test])
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
        probe = fit_probe(every.take(fit), data.task, [strength])
        learnt = {classes[i] for i in fit}
        judged = every.take([i for i in judge if classes[i] in learnt])
        if not judged.ids:
            continue
        scores = data.task.scores(probe.logits(judged.values)).numpy()
        found |= dict(zip(judged.ids, scores, strict=True))
    return found


def write_suspects(folder: RunFolder, outputs: ModelOutputs, probe: Probe | None) -> None:
    """Write gallery/suspects.json: why there are none, or how many of how many rows, and the surest COUNT."""
    record: dict[str, Any] = {"why not": why_not(outputs.data, probe), "of": 0, "count": 0, "rows": []}
    every = None
    if not record["why not"]:  # each rank computes a part of these
        every = joined([*outputs.probe_features().values(), outputs.features("test")])
    if not distributed.is_rank0():
        return
    if every is not None and probe is not None:
        try:
            record |= ranked_suspects(folder, outputs.data, every, probe.strength)
        except Exception as error:  # all else is done and must not be lost by it
            record["why not"] = f"They could not be judged ({type(error).__name__}: {error})."
            folder.log(f"suspected label errors: {record['why not']}")
    folder.json("gallery/suspects.json", record)


def ranked_suspects(folder: RunFolder, data: TargetData, every: Outputs, strength: float) -> dict[str, Any]:
    said = out_of_fold(data, every, strength)
    if not said:
        why = "A class has a single row, or all rows are one group: no other can judge them."
        return {"why not": why}
    seen = replace(seen_of(data.splits, data.task), probabilities=said, classes=data.task.classes)
    suspects = rank_suspects(seen)
    rows = [
        {
            "split": s.split,
            "truth": s.given,
            "probability of truth": s.of_given,
            "predicted": s.likelier,
            "probability": s.of_likelier,
            **shown(folder, s.example, data.splits.kind, f"suspect-{i}.jpg"),
        }
        for i, s in enumerate(suspects[:COUNT])
    ]
    return {"of": len(said), "count": len(suspects), "rows": rows}


def why_not(data: TargetData, probe: Probe | None) -> str:
    if not data.task.has_classes:
        return f"Only labels of a classification task are judged, and this is {data.task.name}."
    if probe is None:
        return "They are found by the source's features, and random weights have none."
    if (count := sum(len(labels) for labels in data.targets.values())) > MOST:
        return (
            f"{count:,} rows are more than the {MOST:,} that a fit looks at: `regraft check` with --source names them."
        )
    return ""
