"""``regraft export``: a run's model in a form that other programs load, and the proof that it is the same.

regraft writes each export beside its place. A fresh process loads it by the very lines that the model card prints,
without regraft where the format allows. regraft compares its scores with the run's own on real rows, and only then
gives the export its name. After a difference nothing is left but the message.

    |p_export − p_run| ≤ 1e-4 for every probability, and the same answer on every row that is no tie

Numbers are compared in standard deviations of the training targets, beyond the rounding of float32 at their
size. Scaling and temperature go into the last layer: y = s·(Wx + b) + m has W' = sW, b' = sb + m.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from .. import plugins
from ..data.columns import ids_of, some_of
from ..data.loading import rows_and_splits
from ..data.preprocessing import to_json
from ..data.splitting import read_manifest
from ..data.types import Example, ImageSpec
from ..errors import DataError, ExportError, RegraftError, UsageError
from ..evidence.calibration import rescale
from ..evidence.comparison import SCORES, read_scores
from ..evidence.scoring import at_threshold, estimates, gain, score
from ..exports import Export, Package
from ..io import guarded
from ..io.atomic import disk_errors, move_folder, sync_file
from ..io.json_files import dumps, plain
from ..io.log import LOGGER, lines_to
from ..io.work_folders import temporary_folder, work_folder
from ..model.forward import Outputs, outputs
from ..model.grafting import Model
from ..model.types import SourceOptions
from ..pipeline.predictor import Predictor, load, plan_of
from ..plan.read import check as check_plan
from ..plan.write import write_plan
from ..report.reading import RunFiles
from ..runs.folder import read_json
from ..runs.model_files import ModelConfig
from ..sources import load_source
from ..tasks import Task
from .model_card import card, int8_in_words, without_folders

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray
    from ..io.streams import Report


TOLERANCE = 1e-4  # of a probability, or of a standard deviation of the training targets

MAX_ROWS = 2000  # rows to compare; each runs twice

BATCH_SIZE = 32

MAX_LINES = 10  # of code that the command prints; the card has them all


@dataclass(frozen=True)
class Parity:
    """Differences between an export and the run's own predictions."""

    rows: str  # "test rows", "training rows" or "generated inputs"
    n: int
    difference: float  # the largest, in the unit of TOLERANCE
    same: int | None  # rows with the same answer; None for numbers, which have no answer beside themselves
    ties: int  # rows with another answer that an allowed difference explains
    from_file: float | None = None  # largest difference to predictions.csv; None unless these are test rows


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    path: Path
    format: str
    parity: Parity
    int8: dict[str, Any] | None  # cost of 8-bit weights; None without --int8
    notes: tuple[str, ...]
    code: str  # lines of the card that load it


def export(
    run: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    calibrated: bool = False,
    int8: bool = False,
    rows: int = MAX_ROWS,
    say: Report = lambda line: None,
) -> Exported:
    """Write a run's model as ``to``, a file of exports/, in the new folder ``out``.

    Without ``out`` the folder is RUN/exports/FORMAT. ``calibrated`` divides logits by the run's temperature.
    ``int8`` (ONNX) adds a quantised model and measures its cost. ``rows`` is the most rows to compare. ``say`` gets
    a line for each step.

    Raises UsageError for a format that is unknown, not installed or unsuited to the run, and for a folder that
    exists; ExportError where the export does not give the run's predictions.
    """
    files, name = RunFiles.read(Path(run)), to.replace("-", "_")
    format = cast(Export, plugins.installed_module("exports", to, "export"))
    place = Path(out) if out is not None else Path(run) / "exports" / name.replace("_", "-")
    if place.exists() or place.is_symlink():
        raise UsageError(f"{place} exists and is never overwritten: choose another --out")
    if out is None and place.parent.is_symlink():
        raise UsageError(f"{place.parent} is a link, and is not written into: choose --out")
    if rows < 1:
        raise UsageError(f"--rows takes a number of rows, not {rows}")
    if int8 and not hasattr(format, "int8"):
        raise UsageError(f"--int8 is for --to onnx, not {to}")
    if calibrated and not format.folds:
        raise UsageError(
            f"--calibrated: a {name} keeps the temperature beside the weights; apply it with "
            "load(…).calibrated() or predict --calibrated"
        )
    predictor = load(run)
    predictor = predictor.calibrated() if calibrated else predictor
    with temporary_folder("regraft-export") as scratch, lines_to(say, progress=False):
        examples, what = rows_for(files, predictor, rows, scratch)
        lost = "; the run's rows are not where they were" if what == "generated inputs" else ""
        LOGGER.info("comparing on %d %s%s", len(examples), what, lost)
        package = packed(files, predictor, examples, format)
        if why := format.refusal(package):
            raise UsageError(f"{run} cannot be exported to {to}: {why}")
        expected = answers(predictor, examples)
        with published(place) as part:
            LOGGER.info("writing %s", name)
            notes = tuple(write_format(format, name, package, part))
            code = format.snippet(package)  # never cut out of the card, which has strings of the run
            LOGGER.info("loading it in a fresh process")
            inputs = inputs_of(examples, predictor.kind)
            found = fresh(part, code, format.with_regraft, inputs, scratch)
            parity = compared(predictor.task, examples, expected, found, what)
            apart = against_file(files, predictor, examples, found, what, calibrated)
            parity = replace(parity, from_file=apart)
            cost = None
            if int8:
                LOGGER.info("quantising, and measuring what it costs")
                file = cast(Any, format).int8(part)
                small = fresh(part, code.replace("model.onnx", file), False, inputs, scratch)
                cost = cost_of(predictor.task, examples, found, small, what) | {
                    "file": file,
                    "bytes": [(part / f).stat().st_size for f in ("model.onnx", file)],
                }
            record = {
                "format": name,
                "calibrated": calibrated,
                "numbers": predictor.task.has_numbers,
                "parity": asdict(parity),
                "int8": cost,
                **guarantees(predictor),
                "versions": files.environment.versions,
                "notes": notes,
            }
            text = dumps(plain(record), indent=2) + "\n"
            (part / "export.json").write_text(text, encoding="utf-8")
            text = card(files, package, name, code, notes, record)
            (part / "README.md").write_text(text, encoding="utf-8")
    return Exported(place, name, parity, cost, notes, code)


def write_format(format: Export, name: str, package: Package, folder: Path) -> Sequence[str]:
    """Call the format's ``write`` and return its notes.

    Raises ExportError, in one sentence, for any exception of an exporter.
    """
    try:
        return format.write(package, folder)
    except (RegraftError, OSError):
        raise
    except Exception as error:  # exporters raise errors of any type
        raise ExportError(f"the model cannot be written as {name}, so nothing was: {in_a_sentence(error)}") from error


def in_a_sentence(error: BaseException) -> str:
    """Return the innermost cause of an exporter's fault: one whole sentence without colours or advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip()
    if lacking := re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", text):
        return f"ONNX has no operator for torch's {lacking[1]}, which the network uses"
    sentence = re.split(r"(?<=[.!?])\s+|\n\s*\n", text)[0]
    return f"{type(error).__name__}: {' '.join(sentence.split())}".rstrip(": ")


# ---------------------------------------------------------------- the rows that are compared


def rows_for(files: RunFiles, predictor: Predictor, limit: int, scratch: Path) -> tuple[list[Example], str]:
    """Return rows of the run's own data with the run's labels, and their kind.

    Content identifies the rows: those of test, else of train; generated inputs where the data are gone. The order
    is that of a hash, so the first ``limit`` rows are a fair sample.
    """
    given = plan_of(files.path).data
    examples: Sequence[Example]
    try:
        options = replace(given.for_task(predictor.task).with_empty_labels(), on_bad="skip")
        examples, _, _ = rows_and_splits(options, predictor.kind)
    except (DataError, OSError, ValueError):  # a path may be too long or missing
        examples = []
    for name in ("test", "train"):
        manifest = read_manifest(files.path / "manifest.jsonl")
        cells = {row.id: tuple(row.cells) for row in manifest if row.split == name}
        known = (i for i, id_ in enumerate(ids_of(examples)) if id_ in cells)
        if found := list(islice(known, limit)):
            rows = [replace(e, cells=cells[e.id]) for e in some_of(examples, found)]
            return rows, "test rows" if name == "test" else "training rows"
    return generated(predictor, len(given.text) == 2, scratch), "generated inputs"


def generated(predictor: Predictor, pairs: bool, scratch: Path) -> list[Example]:
    """Return sixteen pictures of several sizes, or texts of the tokenizer's own words; always the same."""
    rng = np.random.default_rng(0)
    if predictor.kind == "image":
        return [
            Example(str(i), (str(draw(predictor, rng, scratch / f"{i}.png")),), (), f"picture {i}") for i in range(16)
        ]
    tokenizer: Any = predictor.preprocessor.tokenizer  # type: ignore[attr-defined]
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii()) or ["a"]

    def text() -> str:
        return " ".join(rng.choice(words, int(rng.integers(1, 20))))

    return [Example(str(i), (text(), text()) if pairs else (text(),), (), f"text {i}") for i in range(16)]


def draw(predictor: Predictor, rng: np.random.Generator, path: Path) -> Path:
    """Write a picture of coarse noise; return its path."""
    from PIL import Image

    spec: ImageSpec = predictor.preprocessor.spec  # type: ignore[attr-defined]
    height, width = (int(side * rng.uniform(0.8, 2)) for side in spec.size)
    coarse = rng.integers(0, 256, (6, 6, spec.channels), dtype=np.uint8)
    picture = Image.fromarray(coarse[..., 0] if spec.channels == 1 else coarse)
    picture.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


# ---------------------------------------------------------------- the model, ready to leave


def packed(files: RunFiles, predictor: Predictor, examples: Sequence[Example], format: Export) -> Package:
    """Return the run's model with its scaling in the head, and JSON for readers without regraft."""
    source = load_source(str(files.path), SourceOptions(offline=True))
    task = predictor.task
    head = predictor.model.get_submodule("head")
    backbone = predictor.model.get_submodule("backbone")
    if format.folds and task.affine is not None:
        head = folded(head, *task.affine)
    longest = sorted(examples, key=lambda e: -len(" ".join(e.inputs)))[:2]
    rows = [predictor.preprocessor.one(e.inputs) for e in (longest * 2)[:2]]
    config = read_json(files.path, "model/config.json", ModelConfig)
    texts = {
        "preprocess.json": to_json(source.preprocess),
        "labels.json": labels(task) | guarantees(predictor),
        "result.json": files.result.model_dump(),
        "model/config.json": config.model_dump(),
    }
    as_json = {k: dumps(brief_values(v), indent=2) + "\n" for k, v in texts.items()}
    plan = tomllib.loads(write_plan(plan_of(files.path)))
    return Package(
        run=files.path,
        name=files.name,
        model=Model(backbone, head).eval(),
        source=replace(source, backbone=backbone),
        task=task,
        inputs=predictor.preprocessor.collate(rows),
        pairs=len(examples[0].inputs) == 2,
        plain=as_json | {"plan.toml": write_plan(check_plan(brief_values(plan)))},
    )


def brief_values(tree: Any) -> Any:
    """Return JSON values without the folders above files; names of classes stay as they are.

    It works value by value, because in a file's text a path could end within an escape sequence.
    """
    if isinstance(tree, dict):
        return {k: v if k == "classes" else brief_values(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [brief_values(value) for value in tree]
    return without_folders(tree) if isinstance(tree, str) else tree


def labels(task: Task) -> dict[str, Any]:
    """Return class names in output order, and the activation that makes scores of outputs."""
    found = {"task": task.name, "classes": list(task.classes), "activation": task.activation}
    threshold = getattr(task, "threshold", None)
    return found if threshold is None else found | {"threshold": threshold}


def rule_of(predictor: Predictor) -> dict[str, Any] | None:
    """Return the rule of the sets on the export's own outputs, which may be divided by a temperature; None without."""
    rule = predictor.rule
    if rule is None:
        return None
    if rule.temperature is None:
        return {"coverage": rule.coverage, "half_widths": rule.half_widths}
    temperature = rule.temperature / predictor.divided_by
    return {"coverage": rule.coverage, "temperature": temperature, "least_probability": rule.least_probability}


def threshold_of(predictor: Predictor) -> dict[str, Any] | None:
    """Return the rule by which the export's own outputs are accepted; None where the run proved none."""
    rule = predictor.threshold
    if rule is None or rule.temperature is None:
        return None
    temperature = rule.temperature / predictor.divided_by
    return {"max_error": rule.max_error, "temperature": temperature, "threshold": rule.threshold}


def guarantees(predictor: Predictor) -> dict[str, Any]:
    """Return the rules of sets and of accepted rows that there are, by name."""
    found = {"sets": rule_of(predictor), "abstention": threshold_of(predictor)}
    return {name: rule for name, rule in found.items() if rule}


def folded(head: nn.Module, scale: Sequence[float], shift: Sequence[float]) -> nn.Module:
    """Return a head that gives scale · head(x) + shift, output by output [C].

    A linear head gets new weights, computed in float64. Any other head gets one more, diagonal layer.
    """
    s, m = torch.tensor(scale, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64)
    with torch.no_grad():
        if not isinstance(head, nn.Linear):
            last = nn.Linear(len(s), len(s))
            last.weight.copy_(torch.diag(s))
            last.bias.copy_(m)
            return nn.Sequential(head, last).eval()
        made = nn.Linear(head.in_features, head.out_features)
        made.weight.copy_(head.weight.double() * s.unsqueeze(1))
        bias = torch.zeros_like(s) if head.bias is None else head.bias.double()
        made.bias.copy_(bias * s + m)
        return made.eval()


# ---------------------------------------------------------------- the comparison


def answers(predictor: Predictor, examples: Sequence[Example]) -> FloatArray:
    """Return the run's own scores [N, C]."""
    found = outputs(predictor.model, predictor.batches(examples), predictor.compute).values
    return cast("FloatArray", predictor.task.scores(found).numpy())


def fresh(folder: Path, code: str, with_regraft: bool, inputs: Sequence[Any], scratch: Path) -> FloatArray:
    """Return scores [N, C] by the card's code, which a new process runs in the export's folder.

    Raises ExportError with the last line of the process where it fails.
    """
    request, answer = scratch / "request.json", scratch / "scores.json"
    asked = {"code": code, "with_regraft": with_regraft, "inputs": inputs, "batch": BATCH_SIZE}
    request.write_text(json.dumps(asked), encoding="utf-8")
    here = Path(__file__).parent
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    environment.pop("PYTHONWARNINGS", None)
    if with_regraft:
        paths = [str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    ran = subprocess.run(
        [sys.executable, "-P", str(here / "fresh_check.py"), str(request), str(answer)],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"]
        error = ExportError(f"the export does not run on its own, so nothing was written: {said[-1]}")
        error.add_note(ran.stderr)
        raise error
    return np.asarray(json.loads(answer.read_text(encoding="utf-8")), dtype=np.float64)


def inputs_of(examples: Sequence[Example], kind: str) -> list[str | list[str]]:
    """Return absolute paths, because the process works in another folder; or texts, or pairs of texts."""
    if kind == "image":
        return [str(Path(e.inputs[0]).resolve()) for e in examples]
    return [e.inputs[0] if len(e.inputs) == 1 else list(e.inputs) for e in examples]


def scale_of(task: Task) -> FloatArray:
    """Return the unit of TOLERANCE, [C] or [1]."""
    return np.asarray(task.affine[0] if task.affine else [1.0], dtype=np.float64)


def compared(task: Task, examples: Sequence[Example], expected: FloatArray, found: FloatArray, what: str) -> Parity:
    """Return the differences of an export's scores [N, C] to the run's.

    Raises ExportError for scores of another shape, for scores that are not finite, and, with the worst row, where
    the export is not the run.
    """
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise ExportError(
            f"the export gave scores of shape {found.shape}, {int((~np.isfinite(found)).sum())} of them "
            f"not finite, where {expected.shape} belong: nothing was written"
        )
    rounding = 2 * np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    apart = np.abs(found - expected)
    apart = np.where(task.has_numbers, np.maximum(apart - rounding, 0), apart)
    same, tied, differ = agree(task, expected, found), 0, 0
    if same is not None:
        tied = int((~same & ties(task, expected)).sum())
        differ = len(same) - int(same.sum()) - tied
    difference = float((apart / scale_of(task)).max())
    if difference <= TOLERANCE and not differ:
        return Parity(what, len(expected), difference, None if same is None else int(same.sum()), tied)
    apart = np.abs(found - expected) / scale_of(task)
    row, column = (int(i) for i in np.unravel_index(apart.argmax(), apart.shape))
    unit = " standard deviations" if task.affine else ""
    off = int((apart > TOLERANCE).any(axis=1).sum())
    raise ExportError(
        f"the export is not the run: {off} of {len(expected)} {what} differ by more than "
        f"{TOLERANCE:g}{unit}, {differ} in their answer; the largest difference is "
        f"{difference:.3g}{unit}, {examples[row].where}, {task.classes[column]}: "
        f"{expected[row, column]:.6g} by the run, {found[row, column]:.6g} by the export; "
        "nothing was written"
    )


def agree(task: Task, a: FloatArray, b: FloatArray) -> Any:
    """Return whether each row's answer is the same [N]; None for numbers."""
    if task.has_numbers:
        return None
    return np.array([task.label(x) == task.label(y) for x, y in zip(a, b, strict=True)])


def ties(task: Task, rows: FloatArray) -> Any:
    """Return whether an allowed difference could change each row's answer [N]."""
    threshold = getattr(task, "threshold", None)
    if threshold is not None:
        return (np.abs(rows - threshold) <= TOLERANCE).any(axis=1)
    two = np.sort(rows, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0] <= 2 * TOLERANCE


def against_file(
    files: RunFiles, predictor: Predictor, examples: Sequence[Example], found: FloatArray, what: str, calibrated: bool
) -> float | None:
    """Return the largest difference to predictions.csv, which the run may have written on another device.

    None where the rows are no test rows, or the file lacks some.
    """
    if what != "test rows" or not guarded.is_file(files.path, SCORES):
        return None
    wanted = {e.id for e in examples}  # scores of other rows may be many, and stay unread
    ids, scores = read_scores(files.path, predictor.task.outputs, wanted)
    place = {id_: i for i, id_ in enumerate(ids)}
    if not wanted <= place.keys():
        return None
    kept = scores[[place[e.id] for e in examples]]
    if calibrated:
        assert files.result.calibration is not None
        kept = rescale(kept, files.result.calibration.temperature)
    return float((np.abs(found - kept) / scale_of(predictor.task)).max())


def cost_of(task: Task, examples: Sequence[Example], full: FloatArray, small: FloatArray, what: str) -> dict[str, Any]:
    """Return the cost of 8-bit weights: answers that change, and the change of the primary metric.

    The change is measured on test rows alone, paired; negative is worse.
    """
    same = agree(task, full, small)
    found: dict[str, Any] = {
        "rows": what,
        "n": len(full),
        "difference": float((np.abs(small - full) / scale_of(task)).max()),
        "same": None if same is None else int(same.sum()),
        "gain": None,
    }
    if what != "test rows":
        return found
    targets = task.encode([e.cells for e in examples])
    rows = score(Outputs(tuple(e.id for e in examples), torch.zeros(len(full), task.outputs), targets), task, examples)
    metric = at_threshold(cast(Any, plugins.module("metrics", task.primary)), task)
    a, b = (replace(rows, scores=s) for s in (small, full))
    named = {task.primary: metric}
    return found | {
        "metric": task.primary,
        "before": estimates(task, named, b)[task.primary],
        "after": estimates(task, named, a)[task.primary],
        "gain": gain(metric, a, b),
    }


# ---------------------------------------------------------------- the folder


@contextmanager
def published(place: Path) -> Iterator[Path]:
    """Yield a folder beside ``place``, renamed to it at the end and removed after an exception.

    Raises DiskError where it cannot be written, UsageError where another export took the name meanwhile.
    """
    new_parent = not place.parent.exists()
    try:
        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(place), work_folder(place.parent, ".export", mode=0o777) as part:
            yield part
            for path in part.rglob("*"):
                if path.is_file():
                    path.chmod(part.stat().st_mode & 0o666)  # safetensors makes files for one user alone
                    sync_file(path)
            if place.exists() or place.is_symlink():
                raise UsageError(f"{place} was made by another export just now; this one is gone")
            move_folder(part, place)
    finally:
        if new_parent and place.parent.is_dir() and not any(place.parent.iterdir()):
            place.parent.rmdir()


def in_words(exported: Exported) -> str:
    """Return the lines that ``regraft export`` prints."""
    p = exported.parity
    lines = [
        f"{exported.path}   {exported.format.replace('_', '-')}",
        f"SAME     {p.n} {p.rows}, in a fresh process: largest difference {p.difference:.1e}"
        + ("" if p.same is None else f", same answer on {p.same}")
        + (f", {p.ties} ties" if p.ties else ""),
    ]
    if p.from_file is not None:
        lines.append(f"         largest difference to the run's predictions.csv {p.from_file:.1e}")
    if exported.int8:
        lines.append(f"INT8     {int8_in_words(exported.int8)}")
    lines += [f"NOTE     {note}" for note in exported.notes]
    code = [line for line in exported.code.splitlines() if line.strip()]
    if len(code) <= MAX_LINES:
        lines += [f"LOAD     in {exported.path}:", *(f"    {line}" for line in code)]
    else:
        lines.append(f"NEXT     {exported.path / 'README.md'} has the lines that load it")
    return "\n".join(lines)
