"""The model card of an export: README.md, filled with the run's evidence; its head by huggingface_hub.

Of the data it has counts and digests, and names no folder above a file. The only code block loads the export,
and the export was checked by it. Anyone may have written the run's files, so each string of them is escaped for
its place.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from .. import plugins
from ..compute.arrays import Targets
from ..data.types import ImageSpec
from ..errors import printable
from ..exports import Package
from ..report.reading import RunFiles, brief
from ..report.sections.caution import cautions
from ..runs import summary
from ..runs.estimates import Estimate
from ..runs.result import Result

MAX_LISTED = 50  # classes; the export's files name all of them

PIPELINES = {"image": "image-classification", "text": "text-classification"}  # of the hub, for classes and labels


def card(
    files: RunFiles, package: Package, format: str, snippet: str, notes: Sequence[str], record: Mapping[str, Any]
) -> str:
    """Return README.md; ``record`` is export.json. Raises UsageError for a damaged run."""
    head = metadata(files, package, format).to_yaml()
    body = "\n\n".join(filter(None, sections(files, package, snippet, notes, record)))
    return f"---\n{head}\n---\n\n{body}\n"


def metadata(files: RunFiles, package: Package, format: str) -> Any:
    """Return what the hub reads: licence, library, task and the figures on test."""
    from huggingface_hub import EvalResult, ModelCardData

    r = files.result
    pipeline = None if r.targets == "numbers" else PIPELINES.get(package.source.kind)
    kind = pipeline or f"{package.source.kind}-{package.task.name}"
    data = data_name(package)
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=slug(data),
            dataset_name=data,
            dataset_split="test",
            dataset_revision=one_line(files.environment.test_digest)[:16],
            metric_type=one_line(name),
            metric_value=e.value,
            metric_name=f"{one_line(name)} {summary.estimate(e)}, n = {e.n}",
        )
        for name, e in r.test.items()
        if is_defined(e)
    ]
    licence = package.source.licence
    known = re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence) and licence != "unknown"
    return ModelCardData(
        license=licence if known else "other",
        library_name=plugins.module("exports", format).library,
        pipeline_tag=pipeline,
        tags=["regraft", "transfer-learning"],
        model_name=one_line(package.name),
        eval_results=results or None,
    )


def sections(
    files: RunFiles, package: Package, snippet: str, notes: Sequence[str], record: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the paragraphs of the card; empty ones are to be left out."""
    r = files.result
    source = without_folders(r.source.name)
    yield f"# {plain_text(package.name)}"
    yield (
        f"{plain_text(source)}, fine-tuned for {package.task.name} by regraft "
        f"{plain_text(files.environment.regraft)}. "
        f"{outputs(package)}"
    )
    yield "## Load it"
    yield f"With this folder as the working one:\n\n```python\n{snippet.strip()}\n```"
    yield how_checked(record)
    yield "\n".join(f"- {plain_text(note)}" for note in notes) if notes else ""
    yield "## Did transfer help?"
    yield f"**{plain_text(summary.verdict(r))}**"
    yield figures(r)
    if r.calibration:
        divided = f" **This export's outputs are divided by {r.calibration.temperature:.4g}.**"
        yield plain_text(summary.calibration(r.calibration)) + "." + (divided if record["calibrated"] else "")
    if r.sets:
        yield "## Sets with a guarantee"
        yield plain_text(summary.sets(r.sets)) + "." + how_sets_are_made(record, package)
    if r.abstention:
        yield plain_text(summary.abstention(r.abstention)) + "." + how_rows_are_accepted(record)
    yield "## What it cost the source task"
    if r.source.nothing_kept:
        yield "Nothing was kept of a source, so there is nothing to forget."
    else:
        yield plain_text(summary.retention(r.retention, len(r.seeds)) if r.retention else "Not measured.")
    yield "## Data"
    yield (
        f"{as_code(data_name(package))}: {r.rows.train} rows to train, {r.rows.val} of val, "
        f"{r.rows.test} of test; sha256 of ids, splits and labels "
        f"{as_code(files.environment.data_digest)}. The data are not part of this export."
    )
    yield class_table(package, r.targets)
    yield "## Preprocessing"
    yield preprocessing(package)
    yield "## Licence"
    yield (
        f"The source's weights: **{plain_text(package.source.licence)}** (sha256 "
        f"{as_code(r.source.digest or 'none')}). What was learnt from them, and from the data, is "
        "bound by the terms of both."
    )
    yield "## Limits"
    yield "\n".join(f"- {plain_text(line)}" for line in limits(files))


def outputs(package: Package) -> str:
    """Return what the export's outputs are."""
    state = json.loads(package.plain["labels.json"])
    if state["activation"] == "none":
        return "It gives numbers in their own units."
    return f"It gives logits; `scores` below takes their {state['activation']}."


def how_sets_are_made(record: Mapping[str, Any], package: Package) -> str:
    """Return the rule by which a row's set, or its intervals, follow from the export's outputs; "" without sets."""
    rule = record.get("sets")
    if rule is None:
        return ""
    if "half_widths" in rule:
        listed = list(zip(package.task.classes, rule["half_widths"], strict=True))[:MAX_LISTED]
        text = " The interval of a number is itself ± " + ", ".join(f"{w:.6g} ({plain_text(n)})" for n, w in listed)
        return f"{text}."
    text = (
        f" A row's set: divide its logits by {rule['temperature']:.6g}, take the softmax, and keep each class from "
        f"{rule['least_probability']:.6g} on; labels.json, export.json or result.json have these numbers in full."
    )
    return f"{text} They are not of the 8-bit weights." if record["int8"] else text


def how_rows_are_accepted(record: Mapping[str, Any]) -> str:
    """Return the rule by which a row is accepted; "" without one."""
    rule = record.get("abstention")
    if rule is None:
        return ""
    return (
        f" A row is accepted if the softmax of its logits, divided by {rule['temperature']:.6g}, is above "
        f"{rule['threshold']:.6g} for some class."
    )


def how_checked(record: Mapping[str, Any]) -> str:
    """Return how the export was compared with the run."""
    p = record["parity"]
    unit = "of a standard deviation" if record["numbers"] else "of a probability"
    text = (
        f"Checked by these lines in a fresh process on {p['n']} {p['rows']}: at most {p['difference']:.1e} "
        f"{unit} from the run's own predictions"
        + ("" if p["same"] is None else f", the same answer on {p['same']}")
        + (f" ({p['ties']} of the others are ties)." if p["ties"] else ".")
    )
    if record["int8"]:
        text += f"\n\n{as_code(record['int8']['file'])} has 8-bit weights: {int8_in_words(record['int8'])}."
    return text


def figures(r: Result) -> str:
    """Return test with intervals, and the controls on the same rows."""
    lines = [f"Test, n = {r.rows.test}; intervals are 95 %.", "", "| | value |", "|---|---|"]
    lines += [f"| {plain_text(m)} | {number(e)} |" for m, e in r.test.items()]
    lines += ["", f"| control | {plain_text(r.primary)} | gain over it, paired |", "|---|---|---|"]
    lines += [
        f"| {plain_text(name)} | {number(m[r.primary])} | {number(r.gain[name], signed=True)} |"
        for name, m in r.controls.items()
    ]
    return "\n".join(lines)


def is_defined(e: Estimate) -> bool:
    """Return whether a figure is a number."""
    return isfinite(e.value)


def number(e: Estimate, signed: bool = False) -> str:
    """Return a figure with its interval, or "undefined"."""
    if not is_defined(e):
        return "undefined"
    return summary.signed(e) if signed else summary.estimate(e)


def class_table(package: Package, targets: Targets) -> str:
    """Return the names of the outputs."""
    names = [plain_text(c) for c in package.task.classes]
    if targets == "numbers":
        return f"Numbers: {', '.join(names)}."
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{len(names)} classes, in output order: {', '.join(names[:MAX_LISTED])}{more}."


def preprocessing(package: Package) -> str:
    """Return how inputs are prepared."""
    s = package.source.preprocess
    if isinstance(s, ImageSpec):
        resize = f"shorter side to {s.resize}" if isinstance(s.resize, int) else f"to {s.resize}"
        return (
            f"Pictures upright; {resize} ({s.interpolation}), centre {s.size[0]} × {s.size[1]}, scaled to "
            f"[0, 1], mean {s.mean}, std {s.std}."
        )
    spec = json.loads(package.plain["preprocess.json"])
    return f"The source's own tokenizer, cut to {spec['max_length']:d} tokens."


def limits(files: RunFiles) -> list[str]:
    """Return the cautions and the notes of the run."""
    return [
        *cautions(files),
        "It knows only rows like those it was fitted on; nothing here says how it does elsewhere.",
        *(without_folders(note) for note in files.result.notes),
    ]


def data_name(package: Package) -> str:
    """Return the last part of the data's path."""
    path = tomllib.loads(package.plain["plan.toml"])["data"]["path"]
    return one_line(Path(path.replace("\\", "/")).name) or "data"


def slug(text: str) -> str:
    """Return a text as the hub names data sets."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "data"


def without_folders(text: str) -> str:
    """Return a text without the folders of its absolute paths, those behind a source's prefix too."""
    return brief(re.sub(r'\b([a-z]+:)/(?:[^\s"/]+/)+(?=[^\s"/])', r"\1…/", text))


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return printable(" ".join(text.split()))


def plain_text(text: str) -> str:
    """Return a text escaped for Markdown, because class names may hold anything."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#$~{}])", r"\\\1", text)


def as_code(text: str) -> str:
    """Return a text as a code span of Markdown, where only a backtick has a meaning."""
    return f"`{one_line(text).replace('`', '’')}`"


def int8_in_words(cost: Mapping[str, Any]) -> str:
    """Return the size of the 8-bit weights, and what they cost on test."""
    before, after = cost["bytes"]
    size = f"{after / 1e6:.1f} MB of {before / 1e6:.1f}"
    text = (
        f"{size}; largest difference {cost['difference']:.2g} standard deviations"
        if cost["same"] is None
        else f"{size}; same answer on {cost['same']} of {cost['n']} {cost['rows']}"
    )
    if cost["gain"] is None:
        return f"{text}; what it costs on test is not measured: those rows are not where they were"
    after, gain = summary.estimate(cost["after"]), summary.signed(cost["gain"])
    return f"{text}; {cost['metric']} {after}, {gain} over float32, paired"
