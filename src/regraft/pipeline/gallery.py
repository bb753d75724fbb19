"""The worst errors on test, kept with the run so that its report needs neither data nor model.

The task ranks them (``Task.wrongness``). Thumbnails are drawn anew, so nothing of a file but its
pixels is in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..compute.arrays import Kind
    from ..data.types import Example, Splits
    from ..evidence.scoring import Predictions
    from ..runs.folder import RunFolder
    from ..tasks import Task


COUNT, SIDE, LETTERS = 24, 128, 300  # errors, pixels of a thumbnail, letters of a text


def write_gallery(folder: RunFolder, task: Task, splits: Splits, rows: Predictions) -> None:
    """gallery/gallery.json, an entry an error, and a thumbnail each where the inputs are pictures.

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
    """What an entry shows of a row; a picture's thumbnail is written to gallery/``name``."""
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
    """The picture within SIDE × SIDE pixels, as JPEG without anything that came with the file."""
    from PIL import Image

    from ..data.images import read_picture

    to.parent.mkdir(exist_ok=True)
    image = read_picture(file)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    clean.save(to, "JPEG", quality=80)
