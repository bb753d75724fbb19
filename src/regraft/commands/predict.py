"""Inputs and outputs of ``regraft predict`` and ``regraft evaluate``."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ..data.decoding import Lookers
from ..data.images import reason
from ..data.loading import refuse_archive
from ..data.types import DataOptions
from ..errors import DataError, DiskError, shorten
from ..evidence.types import Prediction
from ..formats import image_folder, table
from ..io.csv_cells import escaped
from ..io.streams import Shown
from ..pipeline.predictor import plan_of

Value = str | tuple[str, str]


def like_run(run: Path, data: Path, given: dict[str, Any]) -> DataOptions:
    """Return how to read ``data``: by the columns of the run's own data, unless ``given`` names others."""
    options = plan_of(run).data
    fields: dict[str, Any] = {"path": data, "format": "auto", "image_root": None}
    fields |= {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v}
    return replace(options, **fields)


def named_inputs(
    run: Path, kind: str, inputs: Sequence[str], given: dict[str, Any], stdin: TextIO
) -> tuple[list[str], list[Value]]:
    """Return (names, inputs) of files, folders, tables and, for "-", lines of stdin.

    Raises DataError for what does not exist or holds nothing that the run can read.
    """
    names: list[str] = []
    values: list[Value] = []
    for item in inputs:
        if item == "-":
            lines = [line.rstrip("\r\n") for line in stdin]
            lines = [line for line in lines if line.strip()]
            bad = [i for i, line in enumerate(lines, 1) if not is_text(line)]
            if bad and kind == "text":
                where = shorten([f"line {i}" for i in bad])
                raise DataError(f"{len(bad)} lines of input are not UTF-8 text: {where}")
            names += [f"line {i}" for i in range(1, len(lines) + 1)] if kind == "text" else lines
            values += lines
            continue
        path = Path(item)
        if not path.exists():
            hint = "; to predict a text, pipe it in: echo … | regraft predict RUN -"
            raise DataError(f"{item} does not exist{hint if kind == 'text' else ''}")
        refuse_archive(path)
        if path.suffix.lower() in table.READERS:
            rows = table.read(path, like_run(run, path, given), labelled=False).rows
            names += [r.where for r in rows]
            values += [r.inputs if len(r.inputs) == 2 else r.inputs[0] for r in rows]
        elif kind == "text":
            lines = [t for t in text_of(path).splitlines() if t.strip()]
            names += [f"{path.name} line {i}" for i in range(1, len(lines) + 1)]
            values += lines
        else:
            pictures = [str(p) for p in image_folder.list_images(path)] if path.is_dir() else [item]
            names += pictures
            values += pictures
    if not values:
        raise DataError(f"there is nothing to predict in {', '.join(inputs)}")
    return names, values


def readable(names: Sequence[str], values: Sequence[Value], on_bad: str) -> tuple[list[str], list[Value], list[str]]:
    """Decode each picture once; return names and inputs of the readable ones, and a line on each other one.

    Raises DataError, with the count, for unreadable pictures unless ``on_bad`` is "skip", and where no picture
    is left.
    """
    # Pillow releases the GIL
    with ThreadPoolExecutor(os.cpu_count()) as pool, Lookers() as lookers:
        problems = list(pool.map(partial(_problem, lookers), values))
    bad = [f"{n} ({why})" for n, why in zip(names, problems, strict=True) if why]
    if bad and (on_bad != "skip" or len(bad) == len(names)):
        raise DataError(
            f"{len(bad)} of {len(names)} pictures cannot be read: {shorten(bad)}; mend or remove them, or "
            "predict the others with --on-bad skip"
        )
    good = [(n, v) for n, v, why in zip(names, values, problems, strict=True) if not why]
    return [n for n, _ in good], [v for _, v in good], bad


def _problem(lookers: Lookers, value: Value) -> str:
    """Return why a picture cannot be read; "" for one that can."""
    try:
        lookers.look(Path(str(value)))
    except DataError as error:
        return reason(error) or str(error)
    return ""


def is_text(line: str) -> bool:
    """Return whether a line is UTF-8 text: bytes that are none come as surrogates."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of(path: Path) -> str:
    """Read a text file. Raises DataError where it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}; save it as UTF-8"
        ) from error


def write_predictions(
    file: TextIO | Shown, names: Sequence[str], predictions: Iterable[Prediction], as_json: bool, escape: bool = True
) -> None:
    """Write CSV with a header, or one JSON object a line. ``escape`` keeps a spreadsheet from running a cell.

    Sets are a column "set", with names joined by ";"; intervals are columns "low NAME" and "high NAME". A
    column "accepted" has yes or no.
    """
    writer = csv.writer(file, lineterminator="\n")
    cell = escaped if escape else (lambda value: value)
    for i, (name, prediction) in enumerate(zip(names, predictions, strict=True)):
        if as_json:
            given = {k: v for k, v in asdict(prediction).items() if v is not None or k == "probability"}
            file.write(json.dumps({"input": name, **given}, ensure_ascii=False) + "\n")
            continue
        if i == 0:
            writer.writerow(map(cell, ["input", "predicted", *set_columns(prediction), *prediction.scores]))
        scores = [repr(v) for v in prediction.scores.values()]
        writer.writerow([cell(name), cell(prediction.label), *map(cell, set_cells(prediction)), *scores])


def set_columns(prediction: Prediction) -> list[str]:
    """Return the headers of a prediction's set or intervals, and of whether it is accepted; none without them."""
    found = [] if prediction.classes is None else ["set"]
    found += [f"{end} {name}" for name in prediction.intervals or () for end in ("low", "high")]
    return found if prediction.accepted is None else [*found, "accepted"]


def set_cells(prediction: Prediction) -> list[str]:
    """Return the cells of these columns. In a name, a ";" or a backslash has a backslash before it."""
    classes = prediction.classes
    found = [] if classes is None else [";".join(re.sub(r"([;\\])", r"\\\1", name) for name in classes)]
    found += [repr(end) for ends in (prediction.intervals or {}).values() for end in ends]
    return found if prediction.accepted is None else [*found, "yes" if prediction.accepted else "no"]


def save_predictions(
    out: Path, names: Sequence[str], predictions: Iterable[Prediction], as_json: bool, escape: bool = True
) -> None:
    """Write predictions to a new file. Raises DiskError, and leaves no file, where it cannot be written whole."""
    try:
        with out.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            write_predictions(file, names, predictions, as_json, escape)
    except OSError as error:
        out.unlink(missing_ok=True)  # a part of it would look like all of it
        raise DiskError(f"{out} cannot be written: {error.strerror or error}") from error
