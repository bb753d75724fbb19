"""The model card of an export: README.md by huggingface_hub, filled with the run's evidence.

What it says of data is counts and digests; no folder above a file is named. The first code block loads
the export: it is what the export was checked by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import summary
from .report.reading import RunFiles, brief
from .report.sections.caution import cautions
from .types import ImageSpec, Package

SHOWN = 50  # classes that are listed; the export's files name all of them
PIPELINES = {
    ("image", "classification"): "image-classification",
    ("image", "multilabel"): "image-classification",
    ("text", "classification"): "text-classification",
    ("text", "multilabel"): "text-classification",
}
LIBRARIES = {
    "bundle": "regraft", "timm": "timm", "transformers": "transformers",
    "transformers_features": "transformers", "onnx": "onnx", "torch": "pytorch",
}  # fmt: skip


def card(
    files: RunFiles,
    package: Package,
    format: str,
    snippet: str,
    notes: Sequence[str],
    record: Mapping[str, Any] | None = None,
) -> str:
    """The whole of README.md. ``record`` is export.json, once the export was checked."""
    from huggingface_hub import ModelCard

    head = metadata(files, package, format)
    body = "\n\n".join(filter(None, sections(files, package, snippet, notes, record)))
    return str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body}\n"))


def code_of(text: str) -> str:
    """The card's Python."""
    found = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError("the card has no Python")
    return found.group(1)


def metadata(files: RunFiles, package: Package, format: str) -> Any:
    """What the hub reads: licence, library, task and the figures on test."""
    from huggingface_hub import EvalResult, ModelCardData

    r = files.result
    pipeline = PIPELINES.get((package.source.kind, r["task"]))
    kind = pipeline or f"{package.source.kind}-{r['task']}"
    data = data_name(package)
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=slug(data),
            dataset_name=data,
            dataset_split="test",
            dataset_revision=files.environment["test_digest"][:16],
            metric_type=name,
            metric_value=e["value"],
            metric_name=f"{name} {summary.estimate(e)}, n = {e['n']}",
        )
        for name, e in r["test"].items()
        if None not in (e["value"], e["low"], e["high"])
    ]
    licence = package.source.licence
    known = re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence) and licence != "unknown"
    return ModelCardData(
        license=licence if known else "other",
        library_name=LIBRARIES.get(format, format),
        pipeline_tag=pipeline,
        tags=["regraft", "transfer-learning"],
        model_name=package.name,
        eval_results=results or None,
    )


def sections(
    files: RunFiles,
    package: Package,
    snippet: str,
    notes: Sequence[str],
    record: Mapping[str, Any] | None,
) -> Iterator[str]:
    r = files.result
    source = without_folders(r["source"]["name"])
    yield f"# {plain_text(package.name)}"
    yield (
        f"{plain_text(source)}, fine-tuned for {r['task']} by regraft {files.environment['regraft']}. "
        f"{outputs(package)}"
    )
    yield "## Load it"
    yield f"With this folder as the working one:\n\n```python\n{snippet.strip()}\n```"
    yield how_checked(record)
    yield "\n".join(f"- {plain_text(note)}" for note in notes) if notes else ""
    yield "## Did transfer help?"
    yield f"**{plain_text(summary.verdict(r))}**"
    yield figures(r)
    if r.get("calibration"):
        temperature = r["calibration"]["temperature"]
        divided = record is not None and record["calibrated"]
        yield plain_text(summary.calibration(r["calibration"])) + (
            f". **This export's outputs are divided by {temperature:.4g}.**" if divided else "."
        )
    yield "## What it cost the source task"
    if r["source"]["nothing_kept"]:
        yield "Nothing was kept of a source, so there is nothing to forget."
    else:
        yield plain_text(summary.retention(r["retention"]) if r["retention"] else "Not looked at.")
    yield "## Data"
    n = r["rows"]
    yield (
        f"`{data_name(package)}`: {n['train']} rows to train, {n['val']} of val, {n['test']} of test; "
        f"sha256 of ids, splits and labels `{files.environment['data_digest']}`. The data are not part of "
        "this export."
    )
    yield class_table(files, r)
    yield "## Preprocessing"
    yield preprocessing(package)
    yield "## Licence"
    yield (
        f"The source's weights: **{plain_text(package.source.licence)}** (sha256 "
        f"`{r['source']['digest'] or 'none'}`). What was learnt from them, and from the data, is bound by "
        "the terms of both."
    )
    yield "## Limits"
    yield "\n".join(f"- {plain_text(line)}" for line in limits(files))


def outputs(package: Package) -> str:
    state = json.loads(package.plain["labels.json"])
    if state["activation"] == "none":
        return "It gives numbers in their own units."
    return f"It gives logits; `scores` below takes their {state['activation']}."


def how_checked(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    p = record["parity"]
    unit = "of a standard deviation" if record["numbers"] else "of a probability"
    text = (
        f"Checked by these lines in a fresh process on {p['n']} {p['rows']}: at most {p['difference']:.1e} "
        f"{unit} from the run's own predictions"
        + ("" if p["same"] is None else f", the same answer on {p['same']}")
        + (f" ({p['ties']} of the others are ties)." if p["ties"] else ".")
    )
    if record["int8"]:
        from .exporting import int8_in_words

        text += (
            f"\n\n`{record['int8']['file']}` has 8-bit weights: {int8_in_words(record['int8'])}."
        )
    return text


def figures(r: Mapping[str, Any]) -> str:
    """Test with intervals, and the controls on the same rows."""
    lines = [f"Test, n = {r['rows']['test']}; intervals are 95 %.", "", "| | value |", "|---|---|"]
    lines += [f"| {m} | {number(e)} |" for m, e in r["test"].items()]
    lines += ["", f"| control | {r['primary']} | gain over it, paired |", "|---|---|---|"]
    lines += [
        f"| {name} | {number(m[r['primary']])} | {number(r['gain'][name], signed=True)} |"
        for name, m in r["controls"].items()
    ]
    return "\n".join(lines)


def number(e: Mapping[str, Any], signed: bool = False) -> str:
    if None in (e["value"], e["low"], e["high"]):
        return "undefined"
    return summary.signed(dict(e)) if signed else summary.estimate(dict(e))


def class_table(files: RunFiles, r: Mapping[str, Any]) -> str:
    if r["task"] == "regression":
        return "Numbers: " + ", ".join(plain_text(c) for c in r["classes"]) + "."
    names = [plain_text(c) for c in r["classes"]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} classes, in output order: {', '.join(names[:SHOWN])}{more}."


def preprocessing(package: Package) -> str:
    s = package.source.preprocess
    if isinstance(s, ImageSpec):
        resize = f"shorter side to {s.resize}" if isinstance(s.resize, int) else f"to {s.resize}"
        return (
            f"Pictures upright; {resize} ({s.interpolation}), centre {s.size[0]} × {s.size[1]}, scaled to "
            f"[0, 1], mean {s.mean}, std {s.std}."
        )
    spec = json.loads(package.plain["preprocess.json"])
    return f"The source's own tokenizer, cut to {spec['max_length']} tokens."


def limits(files: RunFiles) -> list[str]:
    return [
        *cautions(files),
        "It knows only rows like those it was fitted on; nothing here says how it does elsewhere.",
        *(without_folders(note) for note in files.result["notes"]),
    ]


def data_name(package: Package) -> str:
    """The last part of the data's path."""
    import tomllib

    path = tomllib.loads(package.plain["plan.toml"])["data"]["path"]
    return Path(path.replace("\\", "/")).name.replace("`", "") or "data"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "data"


def without_folders(text: str) -> str:
    """Absolute paths without the folders above, behind a source's prefix too."""
    return brief(re.sub(r'\b([a-z]+:)/(?:[^\s"/]+/)+(?=[^\s"/])', r"\1…/", text))


def plain_text(text: str) -> str:
    """Text that Markdown leaves as it is: class names are anything."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#$~{}])", r"\\\1", text)
