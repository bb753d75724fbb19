"""One architecture of each timm family with random weights: load, one step, save, load, predict.

    .venv/bin/python tools/sweep_timm.py [--every K] [--part 1/4] [--export] [--survey FILE] [--out timm.jsonl]

A family is what the names of models have in common before sizes and numbers: regnety, vit_relpos. Its
smallest variant is tried, by its number of parameters on the meta device; what is too large is skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import sweeping
from sweeping import Outcome

MAX_PARAMETERS = 60_000_000
SIDES = (64, 128, None)  # pixels to try; None is the architecture's own size
LIMIT_S = 300
SIZES = {"small", "base", "large", "huge", "giant", "medium", "little", "light", "lite", "mini", "tiny", "micro"}
SIZES |= {"atto", "femto", "pico", "nano", "zepto", "xs", "xxs", "xl", "xxl", "xlarge", "xsmall", "xxsmall"}
SIZES |= set("xsmlbthgncd")


def family(name: str) -> str:
    """Return the words of a model's name before the first size or number."""
    words: list[str] = []
    for word in name.split("_"):
        letters = re.match(r"[a-z]+", word)
        if letters is None or (words and word in SIZES):
            break
        words.append(letters.group())
        if letters.group() != word:
            break
    return "_".join(words)


def smallest() -> list[tuple[str, str, int]]:
    """Return (family, its smallest variant, parameters)."""
    import timm
    import torch

    found: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            count = sum(p.numel() for p in timm.create_model(name).parameters())
        one = (count, name)
        found[family(name)] = min(one, found.get(family(name), one))
    return [(f, name, count) for f, (count, name) in sorted(found.items())]


def surveyed(file: Path | None) -> list[tuple[str, str, int]]:
    """Return ``smallest()``, read from the file where it exists and written there where it does not."""
    if file is None:
        return smallest()
    if not file.exists():
        file.write_text(json.dumps(smallest()), encoding="utf-8")
    return [(f, name, n) for f, name, n in json.loads(file.read_text(encoding="utf-8"))]


def attempt(family: str, name: str, export: bool) -> Outcome:
    """Return how far a model gets. Differences between what was saved and loaded count as failures."""
    outcome = Outcome(family, name)
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder, sweeping.recorded(outcome, folder):
        stages(outcome, Path(folder), export)
    return outcome


def stages(outcome: Outcome, folder: Path, export: bool) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    from regraft.model.grafting import graft
    from regraft.pipeline.finish import save_model
    from regraft.pipeline.predictor import load
    from regraft.runs.folder import RunFolder
    from regraft.tasks.classification import Classification

    torch.manual_seed(0)
    net = timm.create_model(outcome.name)
    with torch.no_grad():
        for tensor in net.parameters():
            if not tensor.any():
                tensor.normal_(std=0.02)  # a layer of zeros would hide the layers after it
    save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, folder / "w")
    del net
    source = loaded(outcome, folder / "w")
    outcome.passed.append("load")
    assert source.example is not None
    target = graft(source, 2)
    optimizer = torch.optim.SGD(target.model.parameters(), lr=1e-4)
    y = torch.tensor([0, 1])
    torch.nn.functional.cross_entropy(target.model.train()(source.example), y).backward()
    graded = [n for n, p in target.model.named_parameters() if p.grad is not None]
    if not any(n.startswith("backbone.") for n in graded):
        raise ValueError("no weight of the backbone has a gradient")
    optimizer.step()
    outcome.passed.append("fit")
    task = Classification().make([("a",), ("b",)], ("label",))
    with RunFolder(folder / "run") as run:
        save_model(run, target, task)
    outcome.passed.append("save")
    with torch.no_grad():
        expected = target.model.eval()(source.example)
        found = load(folder / "run").model(source.example)
    if not torch.equal(expected, found):
        apart = float((expected - found).abs().max())
        raise ValueError(f"the model that was loaded differs from the one that was saved by {apart}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError("its outputs are not finite")
    outcome.passed.append("predict")
    if export:
        exported(target, task, folder)
        outcome.passed.append("export")


def loaded(outcome: Outcome, weights: Path) -> Any:
    """Return the source at the first size of picture that it takes, and note what it has."""
    from regraft.errors import SourceError
    from regraft.model.types import SourceOptions
    from regraft.sources import load_source

    for side in SIDES:
        options = SourceOptions(weights=weights, image_size=side, offline=True)
        try:
            source = load_source(f"timm:{outcome.name}", options)
        except SourceError:
            if side is None:
                raise
        else:
            resized = [t.name for t in source.report if t.state == "resized"]
            outcome.more = {
                "side": source.preprocess.size[0],  # type: ignore[union-attr]
                "blocks": len(source.blocks),
                "cuts": all(b.run is not None for b in source.blocks),
                "head": source.head is not None,
                "resized": len(resized),
            }
            return source
    raise AssertionError


def exported(target: Any, task: Any, folder: Path) -> None:
    """Write ONNX as ``regraft export`` does, and compare onnxruntime's outputs."""
    import numpy as np
    import onnxruntime
    import torch

    from regraft import plugins
    from regraft.exports import Package

    onnx, example = plugins.module("exports", "onnx"), target.source.example
    package = Package(
        run=folder / "run",
        name="sweep",
        model=target.model,
        source=target.source,
        task=task,
        inputs=example,
        pairs=False,
        plain={"preprocess.json": "{}", "labels.json": "[]"},
    )
    onnx.write(package, folder)
    (outputs,) = onnxruntime.InferenceSession(folder / onnx.FILE).run(None, {"inputs": example.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, target.model(example).numpy(), rtol=1e-3, atol=1e-4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--every", type=int, default=1, help="take each K-th family only")
    parser.add_argument("--only", nargs="*", help="these families")
    sweeping.add_part(parser)
    parser.add_argument("--survey", type=Path, help="keep the list of families in this file")
    parser.add_argument("--export", action="store_true", help="also write ONNX and run it")
    parser.add_argument("--largest", type=int, default=MAX_PARAMETERS, help="parameters")
    parser.add_argument("--out", type=Path, default=Path("timm.jsonl"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        sweeping.work(lambda family, name: attempt(family, name, options.export))
        return 0
    survey = surveyed(options.survey)
    survey = [f for f in survey if not options.only or f[0] in options.only][:: options.every]
    survey = sweeping.part(survey, options.part)
    large = [(f, name, n) for f, name, n in survey if n > options.largest]
    for name_of_family, name, n in large:
        print(f"skipped {name_of_family:24}{name:36} {n / 1e6:.0f} M parameters", flush=True)
    todo = [(f, name) for f, name, n in survey if n <= options.largest]
    outcomes = sweeping.run(Path(__file__), todo, ["--export"] * options.export, LIMIT_S, options.out)
    return 0 if all(o.whole or o.refused for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
